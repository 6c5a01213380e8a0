"""Every numerical tolerance of the test suite, each with where it comes from."""

# Logits and boxes of a whole model in float64 against an independent implementation: its float32
# sine table alone moves them by 5e-8.
MODEL_FLOAT64 = 1e-6
# Loss terms in float64 against an independent implementation, relative.
LOSS_FLOAT64 = 1e-6
# COCO figures known by hand: pycocotools adds 2.2e-16 to the denominator of every precision, so
# that a perfect AP is 0.9999999999999998.
COCO_AP = 1e-12
