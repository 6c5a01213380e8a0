// What the operations for convolution with bias, sum and ReLU share: their outputs.

#pragma once

#include <ATen/ATen.h>

#include "output_memory.h"

namespace detr_fast {

// The outputs, channels last.
inline at::Tensor empty_outputs(const at::Tensor& x, at::IntArrayRef shape) {
  return new_output(shape, x.options(), at::MemoryFormat::ChannelsLast);
}

// Calls add_to(tensor) with `other` or, unless that is channels last, with a copy in its place.
template <class AddTo>
void add_in_place(at::Tensor& other, const AddTo& add_to) {
  at::Tensor sum = other.contiguous(at::MemoryFormat::ChannelsLast);
  add_to(sum);
  if (!sum.is_same(other)) other.copy_(sum);
}

}  // namespace detr_fast
