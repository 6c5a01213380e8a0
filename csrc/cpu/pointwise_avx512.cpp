// The kernel of 1x1 convolutions and linear layers for float32 and AVX-512.
// What follows the target pragma is compiled for it; the standard library is included before.

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
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
#include "pointwise_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

PointwiseKernel avx512_pointwise() { return avx512::Pointwise<avx512::Float>::convolve; }

}  // namespace detr_fast

#endif
