// The kernels of 1x1 convolutions and linear layers for CPUs: a block of pixels at a time.

#pragma once

#include "multiply.h"

namespace detr_fast {

// Most pixels of a block. Each strip of weights is read once for a block, and the inputs of a block
// once from afar: 2048 channels of float32 fill three quarters of a second cache of 1 MiB.
constexpr int64_t kMostPixels = 96;
static_assert(kMostPixels % kTileRows == 0);

// Outputs are numbered image by image and row by row.
struct PointwiseProblem {
  const void* input;   // [images][height][width][channels]
  const void* weight;  // see detr_fast/reference/pointwise.py
  const void* bias;    // [outputs]
  void* output;        // [images][output_height][output_width][outputs]
  int64_t height, width, output_height, output_width, stride, channels, outputs;
  bool add;  // to what `output` holds
  bool relu;
};

// `pixels` outputs from the first one on, and of each the strips from `first_strip` to before
// `end_strip`.
struct PointwiseBlock {
  int64_t first_pixel, pixels, first_strip, end_strip;
};

using PointwiseKernel = void (*)(const PointwiseProblem&, const PointwiseBlock&);

}  // namespace detr_fast
