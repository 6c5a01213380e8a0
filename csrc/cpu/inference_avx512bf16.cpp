// The kernels for inference in bfloat16, with AVX512-BF16: products of pairs, summed in float32.
// What follows the target pragma is compiled for it; the standard library is included before.

#include "inference_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define DETR_FAST_CAPABILITY avx512bf16
#include "number_avx512bf16.h"

#include "inference_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const InferenceKernels* avx512bf16_inference() {
  static constexpr InferenceKernels kernels = avx512bf16::make_inference<avx512bf16::BFloat16>();
  return &kernels;
}

}  // namespace detr_fast

#else

namespace detr_fast {

const InferenceKernels* avx512bf16_inference() { return nullptr; }

}  // namespace detr_fast

#endif
