// The convolution kernels for bfloat16 and AVX512-BF16: sums in float32, products of pairs of
// channels.
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
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define DETR_FAST_CAPABILITY avx512bf16
#include "number_avx512bf16.h"
#include "pointwise_impl.h"
#include "stem_impl.h"
#include "winograd_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

PointwiseKernel avx512bf16_pointwise() {
  return avx512bf16::Pointwise<avx512bf16::BFloat16>::convolve;
}

const StemKernel* avx512bf16_stem() {
  static constexpr StemKernel kernel = avx512bf16::make_stem<avx512bf16::BFloat16>();
  return &kernel;
}

const WinogradKernel* avx512bf16_winograd() {
  static constexpr WinogradKernel kernel = avx512bf16::make_winograd<avx512bf16::BFloat16>();
  return &kernel;
}

}  // namespace detr_fast

#else

namespace detr_fast {

PointwiseKernel avx512bf16_pointwise() { return nullptr; }
const StemKernel* avx512bf16_stem() { return nullptr; }
const WinogradKernel* avx512bf16_winograd() { return nullptr; }

}  // namespace detr_fast

#endif
