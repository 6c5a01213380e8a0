"""Drawing of detections and training curves."""
