// Matrices transposed in registers, a square of vectors at a time; see simd.h.

#pragma once

#include <utility>

#include "simd.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// transpose(a): lane j of vector i and lane i of vector j change places.

#if defined(DETR_FAST_AVX512)

inline void transpose(__m512 (&a)[16]) {
  constexpr __mmask16 kAll = 0xffff;
  __m512 b[16];
  // Within the quarters of vectors, 2 x 2 and then 4 x 4; then the quarters.
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_maskz_unpacklo_ps(kAll, a[i], a[i + 1]);
    b[i + 1] = _mm512_maskz_unpackhi_ps(kAll, a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int k = 0; k < 2; ++k) {
      const __m512d first = _mm512_castps_pd(b[i + k]), second = _mm512_castps_pd(b[i + k + 2]);
      a[i + 2 * k] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, first, second));
      a[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, first, second));
    }
  }
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 16; i += 8) {
      b[i + k] = _mm512_maskz_shuffle_f32x4(kAll, a[i + k], a[i + k + 4], 0x88);
      b[i + k + 4] = _mm512_maskz_shuffle_f32x4(kAll, a[i + k], a[i + k + 4], 0xdd);
    }
  }
  for (int k = 0; k < 8; ++k) {
    a[k] = _mm512_maskz_shuffle_f32x4(kAll, b[k], b[k + 8], 0x88);
    a[k + 8] = _mm512_maskz_shuffle_f32x4(kAll, b[k], b[k + 8], 0xdd);
  }
}

inline void transpose(__m512d (&a)[8]) {
  constexpr __mmask8 kAll = 0xff;
  __m512d b[8];
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm512_maskz_unpacklo_pd(kAll, a[i], a[i + 1]);
    b[i + 1] = _mm512_maskz_unpackhi_pd(kAll, a[i], a[i + 1]);
  }
  for (int k = 0; k < 2; ++k) {
    for (int i = 0; i < 8; i += 4) {
      a[i + k] = _mm512_maskz_shuffle_f64x2(kAll, b[i + k], b[i + k + 2], 0x88);
      a[i + k + 2] = _mm512_maskz_shuffle_f64x2(kAll, b[i + k], b[i + k + 2], 0xdd);
    }
  }
  for (int k = 0; k < 4; ++k) {
    b[k] = _mm512_maskz_shuffle_f64x2(kAll, a[k], a[k + 4], 0x88);
    b[k + 4] = _mm512_maskz_shuffle_f64x2(kAll, a[k], a[k + 4], 0xdd);
  }
  for (int k = 0; k < 8; ++k) a[k] = b[k];
}

#elif defined(DETR_FAST_AVX2)

inline void transpose(__m256 (&a)[8]) {
  __m256 b[8];
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      a[i + 2 * k] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0x44);
      a[i + 2 * k + 1] = _mm256_shuffle_ps(b[i + k], b[i + k + 2], 0xee);
    }
  }
  for (int k = 0; k < 4; ++k) {
    b[k] = _mm256_permute2f128_ps(a[k], a[k + 4], 0x20);
    b[k + 4] = _mm256_permute2f128_ps(a[k], a[k + 4], 0x31);
  }
  for (int k = 0; k < 8; ++k) a[k] = b[k];
}

inline void transpose(__m256d (&a)[4]) {
  __m256d b[4];
  for (int i = 0; i < 4; i += 2) {
    b[i] = _mm256_unpacklo_pd(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_pd(a[i], a[i + 1]);
  }
  for (int k = 0; k < 2; ++k) {
    a[k] = _mm256_permute2f128_pd(b[k], b[k + 2], 0x20);
    a[k + 2] = _mm256_permute2f128_pd(b[k], b[k + 2], 0x31);
  }
}

#else

template <class Vector, int kLanes>
inline void transpose(Vector (&a)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) std::swap(a[i].lane[j], a[j].lane[i]);
  }
}

#endif

// Writes the transpose of count <= kLanes arrays of length <= kLanes, `stride` apart, as `length`
// whole vectors, `to_stride` apart; what is beyond `count` in them has no meaning.
template <class T>
inline void transpose_block(const T* from, int64_t stride, int count, int length, T* to,
                            int64_t to_stride) {
  using V = Simd<T>;
  typename V::Vector a[V::kLanes];
  if (count == V::kLanes && length == V::kLanes) {
    for (int k = 0; k < V::kLanes; ++k) a[k] = V::load(from + k * stride);
    transpose(a);
    for (int k = 0; k < V::kLanes; ++k) V::store(to + k * to_stride, a[k]);
    return;
  }
  for (int k = 0; k < V::kLanes; ++k) {
    a[k] = V::load_first(k < count ? length : 0, from + (k < count ? k : 0) * stride);
  }
  transpose(a);
  for (int k = 0; k < length; ++k) V::store(to + k * to_stride, a[k]);
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
