// The Winograd kernel for float32 and AVX-512.
// What follows the target pragma is compiled for it; the standard library is included before.

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

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
#include "winograd_impl.h"

namespace detr_fast {
namespace avx512 {

// A word is a float.
struct WinogradFloat {
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

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const WinogradKernel& avx512_winograd() {
  static constexpr WinogradKernel kernel = avx512::make_winograd<avx512::WinogradFloat>();
  return kernel;
}

}  // namespace detr_fast

#endif
