// The convolution kernels for CPUs: 3x3 of stride 1 by Winograd's F(2x2, 3x3), a number of tiles at
// a time.

#pragma once

#include <cstddef>
#include <cstdint>

#include "multiply.h"

namespace detr_fast {

// What channels come in multiples of.
constexpr int64_t kChannelStep = 16;

// Most tiles of a call: more would take more memory, fewer would read the weights more often.
constexpr int64_t kMostTiles = 48;

// Inputs beyond the image are 0. A tile is 2x2 outputs that lie `dilation` apart, so that
// `dilation` rows of tiles cover 2 * dilation rows of an image. Tiles are numbered image by image,
// row by row and from left to right.
struct WinogradProblem {
  const void* input;   // [images][height][width][channels]
  const void* weight;  // see detr_fast/reference/winograd.py
  const void* bias;    // [outputs]
  void* output;        // [images][height][width][outputs]
  int64_t images, height, width, channels, outputs, dilation;
  int64_t tile_rows, tile_columns;  // of an image
  bool add;                         // to what `output` holds
  bool relu;
};

struct WinogradKernel {
  // Memory for a call with so many tiles.
  size_t (*bytes)(const WinogradProblem&, int64_t tiles);
  // Writes the outputs of tiles first to first + count - 1; `storage` is aligned for vectors.
  void (*convolve)(const WinogradProblem&, int64_t first, int64_t count, void* storage);
};

}  // namespace detr_fast
