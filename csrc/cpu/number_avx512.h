// How float32 is multiplied with AVX-512: what a `Format` is. For files whose instruction sets
// include it.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace detr_fast {
namespace avx512 {

constexpr int kLanes = 16;  // words of 32 bits in a vector

// A word is a float.
struct Float {
  using Element = float;
  static constexpr int kInWord = 1;
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(__m512 a, float* to) { _mm512_storeu_ps(to, a); }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }

  // A vector of words, each of which has one entry of every row, from entry `i` on. Rows but the
  // first may be null, for zeros.
  static void interleave(const float* const (&rows)[1], int64_t i, uint32_t* to) {
    _mm512_storeu_ps(to, _mm512_loadu_ps(rows[0] + i));
  }
  // Numbers one after another.
  static void store_words(const __m512 (&numbers)[1], uint32_t* to) {
    _mm512_storeu_ps(to, numbers[0]);
  }
};

}  // namespace avx512
}  // namespace detr_fast
