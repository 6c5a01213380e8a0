"""COCO average precision."""
