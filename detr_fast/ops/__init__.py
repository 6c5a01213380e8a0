"""Contracts of the operations: checks, schema, fake and reference registration."""
