"""COCO average precision and panoptic quality."""
