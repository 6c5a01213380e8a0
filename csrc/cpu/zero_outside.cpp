// zero_outside and zero_outside_ on the CPU: the contract is in detr_fast/ops/zero_outside.py. Only
// the padding is written: the rows below each image and the columns to its right.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

namespace detr_fast {
namespace {

// All bits zero is 0 in every floating type, so that the type is only a number of bytes.
struct Grid {
  char* data;
  int64_t height, width;
  int64_t channel_bytes, row_bytes, column_bytes;  // from one to the next

  // Zeros `count` columns of a row of one channel, or of all channels if they lie side by side.
  void clear(int64_t channel, int64_t row, int64_t column, int64_t count) const {
    char* start = data + channel * channel_bytes + row * row_bytes + column * column_bytes;
    std::memset(start, 0, count * column_bytes);
  }
};

void clear_plane(const Grid& grid, int64_t channel, int64_t rows, int64_t columns) {
  if (columns < grid.width) {
    for (int64_t row = 0; row < rows; ++row) {
      grid.clear(channel, row, columns, grid.width - columns);
    }
  }
  for (int64_t row = rows; row < grid.height; ++row) grid.clear(channel, row, 0, grid.width);
}

void clear_outside(const at::Tensor& features, const at::Tensor& extents) {
  const int64_t images = features.size(0), channels = features.size(1);
  const int64_t height = features.size(2), width = features.size(3);
  const at::Tensor bounds = extents.contiguous();
  const int64_t* bound = bounds.const_data_ptr<int64_t>();
  const bool last = features.is_contiguous(at::MemoryFormat::ChannelsLast);
  const int64_t planes = last ? 1 : channels, entry = features.element_size();
  char* data = static_cast<char*>(features.data_ptr());
  const int64_t image_bytes = channels * height * width * entry;
  at::parallel_for(0, images * planes, last ? 1 : 64, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t b = k / planes;
      const int64_t column_bytes = last ? channels * entry : entry;
      const Grid grid{data + b * image_bytes, height, width, height * width * entry,
                      width * column_bytes, column_bytes};
      clear_plane(grid, k % planes, std::clamp<int64_t>(bound[2 * b], 0, height),
                  std::clamp<int64_t>(bound[2 * b + 1], 0, width));
    }
  });
}

void zero_outside_(at::Tensor& features, const at::Tensor& extents) {
  if (features.numel() == 0) return;
  if (features.is_contiguous(at::MemoryFormat::ChannelsLast) || features.is_contiguous()) {
    clear_outside(features, extents);
  } else {
    at::Tensor dense = features.contiguous();
    clear_outside(dense, extents);
    features.copy_(dense);
  }
}

at::Tensor zero_outside(const at::Tensor& features, const at::Tensor& extents) {
  at::Tensor copy = features.clone();
  zero_outside_(copy, extents);
  return copy;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("zero_outside", zero_outside);
  m.impl("zero_outside_", zero_outside_);
}

}  // namespace
}  // namespace detr_fast
