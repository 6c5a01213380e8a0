// The kernels for inference in float32, with AVX-512.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define DETR_FAST_CAPABILITY avx512
#include "number_avx512.h"

#include "inference_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const InferenceKernels* avx512_inference() {
  static constexpr InferenceKernels kernels = avx512::make_inference<avx512::Float>();
  return &kernels;
}

}  // namespace detr_fast

#else

namespace detr_fast {

const InferenceKernels* avx512_inference() { return nullptr; }

}  // namespace detr_fast

#endif
