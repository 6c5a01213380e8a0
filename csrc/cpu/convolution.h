// What the operations for convolution with bias, sum and ReLU share: how they come to a kernel.

#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <utility>

#include "kernels.h"

namespace detr_fast {

// The kernel for a dtype on this CPU, or none.
template <class Kernel>
Kernel kernel_for(const at::Tensor& x, Kernel (*of_float)(), Kernel (*of_bfloat16)()) {
  if (x.scalar_type() == at::kFloat && cpu_uses_avx512()) return of_float();
  if (x.scalar_type() == at::kBFloat16 && cpu_uses_avx512bf16()) return of_bfloat16();
  return nullptr;
}

// Runs the reference of an operation and returns its results.
template <class... Arguments>
torch::jit::Stack call_reference(const char* operation, Arguments&&... arguments) {
  torch::jit::Stack stack;
  torch::jit::push(stack, std::forward<Arguments>(arguments)...);
  c10::Dispatcher::singleton().findSchemaOrThrow(operation, "").callBoxedForDispatchKey(
      c10::DispatchKey::CompositeExplicitAutograd, stack);
  return stack;
}

// New memory for the outputs, channels last.
inline at::Tensor empty_outputs(const at::Tensor& x, at::IntArrayRef shape) {
  return at::empty(shape, x.options().memory_format(at::MemoryFormat::ChannelsLast));
}

// Calls add_to(tensor) with `other` or, unless that is channels last, with a copy in its place.
template <class AddTo>
void add_in_place(at::Tensor& other, const AddTo& add_to) {
  at::Tensor sum = other.contiguous(at::MemoryFormat::ChannelsLast);
  add_to(sum);
  if (!sum.is_same(other)) other.copy_(sum);
}

}  // namespace detr_fast
