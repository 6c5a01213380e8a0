"""The kinds of data sets by name, for `build.build_dataset`. This module does not need torch."""

KINDS = ("coco", "coco_panoptic", "shapes", "shapes_panoptic")
