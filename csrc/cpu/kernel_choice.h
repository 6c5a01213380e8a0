// What runs an operation: the kernel for this CPU and dtype or, without one, its reference.

#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <utility>

#include "kernels.h"

namespace detr_fast {

// The kernel for a dtype on this CPU, or null; also null where the compiler has none to offer.
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

}  // namespace detr_fast
