// What runs an operation for inference: a kernel for this CPU and dtype or, without one, its
// reference.

#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <utility>

#include "inference_kernels.h"
#include "kernels.h"

namespace detr_fast {

// The kernels for tensors like `x` on this CPU, or null.
inline const InferenceKernels* inference_kernels(const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat && cpu_uses_avx512()) return avx512_inference();
  if (x.scalar_type() == at::kBFloat16 && cpu_uses_avx512bf16()) return avx512bf16_inference();
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
