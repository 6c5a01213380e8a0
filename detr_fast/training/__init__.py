"""Matcher, criterion, recipes and the trainer."""
