"""Detection on images: detector, post-processing and results."""
