// The convolution kernels for float32 and AVX-512.
// What follows the target pragma is compiled for it; the standard library is included before.

#include "pointwise.h"
#include "stem.h"
#include "winograd.h"

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
#include "stem_impl.h"
#include "winograd_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

PointwiseKernel avx512_pointwise() { return avx512::Pointwise<avx512::Float>::convolve; }

const StemKernel* avx512_stem() {
  static constexpr StemKernel kernel = avx512::make_stem<avx512::Float>();
  return &kernel;
}

const WinogradKernel* avx512_winograd() {
  static constexpr WinogradKernel kernel = avx512::make_winograd<avx512::Float>();
  return &kernel;
}

}  // namespace detr_fast

#else

namespace detr_fast {

PointwiseKernel avx512_pointwise() { return nullptr; }
const StemKernel* avx512_stem() { return nullptr; }
const WinogradKernel* avx512_winograd() { return nullptr; }

}  // namespace detr_fast

#endif
