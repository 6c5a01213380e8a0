"""The truth: plain PyTorch and SciPy, slow and obvious; imports nothing else of detr_fast."""
