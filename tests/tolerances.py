"""Every numerical tolerance of the test suite, each with where it comes from."""

# Logits and boxes of a whole model in float64 against an independent implementation: its float32
# sine table alone moves them by 5e-8.
MODEL_FLOAT64 = 1e-6
# Loss terms in float64 against an independent implementation, relative.
LOSS_FLOAT64 = 1e-6
# COCO figures known by hand: pycocotools adds 2.2e-16 to the denominator of every precision, so
# that a perfect AP is 0.9999999999999998.
COCO_AP = 1e-12
# Matching costs up to about 20 in size. float32: each term is within a few ulp (2**-23 of 20 is
# 2e-6, and 1 - p + eps amplifies the rounding of p in the focal cost); measured at most 4e-6.
MATCHING_COST_FLOAT32 = 2e-5
# The class term alone, absolute and relative. Softmax: a few roundings of numbers up to 1, measured
# at most 1e-7; focal: also those of a logarithm and powers, measured at most 3e-7.
SOFTMAX_TERM_FLOAT32 = 3e-7
FOCAL_TERM_FLOAT32 = 1e-6
# The same as the first in float64; measured at most 1e-14.
MATCHING_COST_FLOAT64 = 1e-12
# Half inputs are converted exactly and then computed in float32.
MATCHING_COST_HALF = MATCHING_COST_FLOAT32
# Gradients of two processes against one with the joined batch, float64, absolute.
JOINED_GRADIENTS = 1e-6
# Losses and gradients added over micro-batches in float64: rounding of a few hundred additions.
ACCUMULATED_FLOAT64 = 1e-12
# The same float64 arithmetic in another order of summation, through a small model; measured at
# most 2e-15.
MODEL_REASSOCIATED_FLOAT64 = 1e-12
# A small untrained model under 16-bit autocast against float32, logits and boxes of order one;
# measured at most 0.014, in bfloat16.
MODEL_AUTOCAST = 0.05
# A padded batch against its images one by one: masked keys change the order of sums in attention,
# and the size of the canvas the blocking of convolutions. Through a whole model of order one.
EXACT_BATCH_FLOAT64 = 1e-12
EXACT_BATCH_LOGITS_FLOAT32 = 1e-4
EXACT_BATCH_BOXES_FLOAT32 = 1e-5
# COCO AP of 24 pictures, which rounding may move by the rank of one detection.
EXACT_BATCH_AP = 1e-3
# The engine against the model, logits and boxes of order one. float32: folding and other orders of
# sums; measured at most 7e-5 and 2e-6 (learned positions, whose logits are the largest).
ENGINE_LOGITS_FLOAT32 = 1e-4
ENGINE_BOXES_FLOAT32 = 1e-5
# A folded ResNet against the network, features of up to 6, for the same reasons; measured at most
# 5e-6.
FOLDED_FLOAT32 = 5e-5
# In 16 bits the limits are the package's own, derived at the head of `inference.verify`. Measured
# at most, of logits of random models of up to 101 convolutions and 12 layers: 0.009 in bf16, whose
# limit is 0.031, and 0.0014 in fp16, whose limit is 0.0039; boxes less.
# The engine's transformer, states of order one, with its tokens in another layout: masked keys
# change the order of sums, as above; measured at most 2e-6.
PACKED_FLOAT32 = 1e-5
# COCO AP of the shipped model in 16 bits against float32.
ENGINE_AP = 1e-3
# The mask head in float64 against its plain reference: image and attention are summed in another
# order; measured at most 1e-13 at logits of order one.
MASK_HEAD_FLOAT64 = 1e-10
# Panoptic quality known by hand: a few float64 additions and divisions.
PANOPTIC_QUALITY = 1e-12
# The same against torchmetrics, which adds in float32.
PANOPTIC_QUALITY_TORCHMETRICS = 1e-6
# Duals in float64 against what they must satisfy, relative to the largest of costs and duals: each
# is a sum of a few differences along a path, with a rounding of 1.1e-16 each.
CERTIFICATE_FLOAT64 = 1e-13
# Attention of order one against its formula in float64, another order of sums; measured at most
# 1e-15.
ATTENTION_FLOAT64 = 1e-12
# Attention kernels, output and gradients of order one, against the reference in float64 with the
# same inputs: a few hundred float32 additions; measured at most 1e-6.
ATTENTION_FLOAT32 = 1e-5
# The same in 16 bits, absolute plus relative: weights and scores' gradients are rounded to 11 (8)
# bits before they are multiplied; measured 5e-4 in float16 and 4e-3 in bfloat16.
ATTENTION_FLOAT16 = 2e-3
ATTENTION_BFLOAT16 = 2e-2
# Winograd's convolution of order one in float64, another order of sums over 288 products.
WINOGRAD_FLOAT64 = 1e-12
# A 1x1 convolution of order one in float64, another order of sums over 32 products.
POINTWISE_FLOAT64 = 1e-14
