// Padded feature maps on the GPU, and the launch that clears their padding. For the host and for
// nvcc; no torch headers. The kernel is in clear_padding_kernel.h.

#pragma once

#include <cstdint>

#include "launch.h"

namespace detr_fast {

// A dense batch of images, each of them planes of rows of columns. Where the channels of a pixel
// lie side by side they are one plane, and a column holds all of them.
struct PaddedGrid {
  char* data;
  const int64_t* extents;  // (images, 2), dense: the rows and columns of each image
  unsigned images, planes;
  int height, width;
  long long column_bytes;  // even
};

// Writes zeros beyond the extent of each image, and nothing else. All bits zero is 0 in every
// floating type, so that the type is only a number of bytes.
void launch_clear_padding(const PaddedGrid& grid, const Launch& launch);

}  // namespace detr_fast
