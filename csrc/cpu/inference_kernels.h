// The kernels for inference on a CPU: a set for each number format, with the instructions it needs.

#pragma once

#include "attention.h"
#include "pointwise.h"
#include "stem.h"
#include "winograd.h"

namespace detr_fast {

struct InferenceKernels {
  AttentionKernel attention;
  PointwiseKernel pointwise;
  StemKernel stem;
  WinogradKernel winograd;
};

// Null where the compiler has none to offer.
const InferenceKernels* avx512_inference();      // of float32
const InferenceKernels* avx512bf16_inference();  // of bfloat16

}  // namespace detr_fast
