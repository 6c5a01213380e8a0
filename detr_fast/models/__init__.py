"""DETR modules and the model zoo."""
