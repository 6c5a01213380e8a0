// The Winograd kernel for bfloat16 and AVX512-BF16: transforms and sums in float32, products of
// pairs of channels.
// What follows the target pragma is compiled for it; the standard library is included before.

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define DETR_FAST_CAPABILITY avx512bf16
#include "winograd_impl.h"

namespace detr_fast {
namespace avx512bf16 {

// A word is a pair of channels, the first in the lower half.
struct WinogradBFloat16 {
  using Element = uint16_t;
  static constexpr int kInWord = 2;
  static __m512 load(const uint16_t* from) {
    const auto* vector = reinterpret_cast<const __m256i*>(from);
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(vector));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, wide, 16));
  }
  static void store(__m512 a, uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(a));
  }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
};

}  // namespace avx512bf16
}  // namespace detr_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const WinogradKernel& avx512bf16_winograd() {
  static constexpr WinogradKernel kernel =
      avx512bf16::make_winograd<avx512bf16::WinogradBFloat16>();
  return kernel;
}

}  // namespace detr_fast

#endif
