// How float32 is multiplied with AVX-512: what a `Format` is. For files whose instruction sets
// include it.

#pragma once

#include <immintrin.h>

namespace detr_fast {
namespace avx512 {

// A word is a float.
struct Float {
  using Element = float;
  static constexpr int kInWord = 1;
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(__m512 a, float* to) { _mm512_storeu_ps(to, a); }
  static __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
};

}  // namespace avx512
}  // namespace detr_fast
