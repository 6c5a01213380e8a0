// The kernels for CPUs of how a ResNet begins: 7x7 convolution of stride 2 of three channels, ReLU,
// 3x3 maximum of stride 2, a band of rows at a time.

#pragma once

#include <cstddef>
#include <cstdint>

namespace detr_fast {

constexpr int64_t kStemChannels = 3, kStemKernel = 7, kStemStride = 2, kStemPadding = 3;

// The side after a stride of 2, of the convolution as of the maximum.
constexpr int64_t half_of(int64_t side) { return (side + 1) / 2; }

// Inputs beyond the image are 0; a maximum ignores what is beyond the convolution's outputs.
struct StemProblem {
  const void* input;       // [images][height][width][3]
  const void* weight;      // see detr_fast/reference/resnet_stem.py
  const void* bias;        // [outputs]
  const int64_t* extents;  // [images][2], rows and columns of each image; null for all
  void* output;            // [images][pooled height][pooled width][outputs]
  int64_t images, height, width, outputs;
};

struct StemKernel {
  // Memory for a call with so many rows.
  size_t (*bytes)(int64_t rows);
  // Writes rows first to first + count - 1 of the output of an image; `storage` is aligned for
  // vectors.
  void (*convolve)(const StemProblem&, int64_t image, int64_t first, int64_t count, void* storage);
};

}  // namespace detr_fast
