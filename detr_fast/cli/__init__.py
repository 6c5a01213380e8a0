"""The `detr-fast` command, one file a verb."""
