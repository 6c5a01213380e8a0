// zero_outside and zero_outside_ on CUDA: the contract is in detr_fast/ops/zero_outside.py. Only
// the padding is written; extents are read on the device, and nothing here waits for it.

#include "clear_padding.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

namespace detr_fast {
namespace {

// So that the pieces of an image can be counted in 32 bits.
constexpr int64_t kMostNumbers = int64_t{1} << 30;

void clear_outside(const at::Tensor& features, const at::Tensor& extents) {
  const int64_t images = features.size(0), channels = features.size(1);
  const int64_t height = features.size(2), width = features.size(3);
  TORCH_CHECK_VALUE(
      std::max(images, channels * height * width) <= kMostNumbers, "features have shape ",
      features.sizes(), ": there can be at most 2^30 images of at most 2^30 numbers each.");
  const bool last = features.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor bounds = extents.contiguous();
  const int64_t column_bytes = features.element_size() * (last ? channels : 1);
  launch_clear_padding({static_cast<char*>(features.mutable_data_ptr()),
                       bounds.const_data_ptr<int64_t>(), static_cast<unsigned>(images),
                       static_cast<unsigned>(last ? 1 : channels), static_cast<int>(height),
                       static_cast<int>(width), column_bytes},
                      current_launch());
}

void zero_outside_(at::Tensor& features, const at::Tensor& extents) {
  const c10::cuda::CUDAGuard guard(features.device());
  if (features.numel() == 0) return;
  if (features.is_contiguous(at::MemoryFormat::ChannelsLast) || features.is_contiguous()) {
    clear_outside(features, extents);
  } else {
    const at::Tensor dense = features.contiguous();
    clear_outside(dense, extents);
    features.copy_(dense);
  }
}

at::Tensor zero_outside(const at::Tensor& features, const at::Tensor& extents) {
  at::Tensor copy = features.clone();
  zero_outside_(copy, extents);
  return copy;
}

TORCH_LIBRARY_IMPL(detr_fast, CUDA, m) {
  m.impl("zero_outside", zero_outside);
  m.impl("zero_outside_", zero_outside_);
}

}  // namespace
}  // namespace detr_fast
