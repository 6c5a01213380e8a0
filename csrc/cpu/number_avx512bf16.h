// How bfloat16 is multiplied with AVX512-BF16: what a `Format` is. For files whose instruction sets
// include it.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace detr_fast {
namespace avx512bf16 {

constexpr int kLanes = 16;  // words of 32 bits in a vector

// A word is a pair, the first number in the lower half.
struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kInWord = 2;
  static __m512i widened(const uint16_t* from) {
    const auto* vector = reinterpret_cast<const __m256i*>(from);
    return _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(vector));
  }
  static __m512 load(const uint16_t* from) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, widened(from), 16));
  }
  static void store(__m512 a, uint16_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(a));
  }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }

  // As those of `avx512::Float`.
  static void interleave(const uint16_t* const (&rows)[2], int64_t i, uint32_t* to) {
    const __m512i second = rows[1] ? widened(rows[1] + i) : _mm512_setzero_si512();
    _mm512_storeu_si512(to, _mm512_or_si512(widened(rows[0] + i),
                                            _mm512_maskz_slli_epi32(0xffff, second, 16)));
  }
  static void store_words(const __m512 (&numbers)[2], uint32_t* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(numbers[1], numbers[0]));
  }
};

}  // namespace avx512bf16
}  // namespace detr_fast
