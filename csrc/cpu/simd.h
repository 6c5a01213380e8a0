// Vectors of float and double for the instruction set that the including file is compiled for: it
// defines DETR_FAST_CAPABILITY as avx512, avx2 or portable before it includes this. Everything is in
// a namespace of that name, so that the linker never merges code for different instruction sets.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(DETR_FAST_AVX512) || defined(DETR_FAST_AVX2)
#include <immintrin.h>
#endif

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// Simd<T>: kLanes values of T in a Vector. Comparisons give one bit a lane, lane 0 the lowest.
template <class T>
struct Simd;

#if defined(DETR_FAST_AVX512)

// The masked forms with a full mask: GCC 12 warns of its own undefined source in the plain ones.
template <>
struct Simd<float> {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector a) { _mm512_storeu_ps(p, a); }
  static Vector broadcast(float a) { return _mm512_set1_ps(a); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_maskz_min_ps(0xffff, a, b); }
  static Vector abs(Vector a) { return _mm512_abs_ps(a); }
  static uint64_t less_equal(Vector a, Vector b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
  }
  static uint64_t equal(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
};

template <>
struct Simd<double> {
  using Vector = __m512d;
  static constexpr int kLanes = 8;
  static Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static void store(double* p, Vector a) { _mm512_storeu_pd(p, a); }
  static Vector broadcast(double a) { return _mm512_set1_pd(a); }
  static Vector add(Vector a, Vector b) { return _mm512_add_pd(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_maskz_min_pd(0xff, a, b); }
  static Vector abs(Vector a) { return _mm512_abs_pd(a); }
  static uint64_t less_equal(Vector a, Vector b) {
    return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ);
  }
  static uint64_t equal(Vector a, Vector b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
};

#elif defined(DETR_FAST_AVX2)

template <>
struct Simd<float> {
  using Vector = __m256;
  static constexpr int kLanes = 8;
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector a) { _mm256_storeu_ps(p, a); }
  static Vector broadcast(float a) { return _mm256_set1_ps(a); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
  static Vector abs(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static uint64_t less_equal(Vector a, Vector b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
  }
  static uint64_t equal(Vector a, Vector b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
  }
};

template <>
struct Simd<double> {
  using Vector = __m256d;
  static constexpr int kLanes = 4;
  static Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static void store(double* p, Vector a) { _mm256_storeu_pd(p, a); }
  static Vector broadcast(double a) { return _mm256_set1_pd(a); }
  static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm256_sub_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm256_min_pd(a, b); }
  static Vector abs(Vector a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static uint64_t less_equal(Vector a, Vector b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LE_OQ)));
  }
  static uint64_t equal(Vector a, Vector b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ)));
  }
};

#else

template <class T>
struct Simd {
  static constexpr int kLanes = 16 / sizeof(T);
  struct Vector {
    T lane[kLanes];
  };

  static Vector load(const T* p) {
    Vector a;
    std::memcpy(a.lane, p, sizeof a.lane);
    return a;
  }
  static void store(T* p, Vector a) { std::memcpy(p, a.lane, sizeof a.lane); }
  static Vector broadcast(T a) {
    return make([=](int) { return a; });
  }
  static Vector add(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] + b.lane[k]; });
  }
  static Vector sub(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] - b.lane[k]; });
  }
  static Vector min(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] < b.lane[k] ? a.lane[k] : b.lane[k]; });
  }
  static Vector abs(Vector a) {
    return make([&](int k) { return __builtin_fabs(a.lane[k]); });
  }
  static uint64_t less_equal(Vector a, Vector b) {
    return bits([&](int k) { return a.lane[k] <= b.lane[k]; });
  }
  static uint64_t equal(Vector a, Vector b) {
    return bits([&](int k) { return a.lane[k] == b.lane[k]; });
  }

 private:
  template <class Value>
  static Vector make(const Value& value) {
    Vector a;
    for (int k = 0; k < kLanes; ++k) a.lane[k] = static_cast<T>(value(k));
    return a;
  }
  template <class Test>
  static uint64_t bits(const Test& test) {
    uint64_t result = 0;
    for (int k = 0; k < kLanes; ++k) result |= static_cast<uint64_t>(test(k)) << k;
    return result;
  }
};

#endif

// Calls block(first, second, third, fourth) with the first columns of four vectors at a time, in
// ascending order, until they have covered [0, count), count >= kLanes; some columns may come twice.
// Stops where `block` returns true.
template <class T, class Block>
inline void for_each_block(int count, const Block& block) {
  constexpr int kLanes = Simd<T>::kLanes;
  int j = 0;
  for (; j + 4 * kLanes <= count; j += 4 * kLanes) {
    if (block(j, j + kLanes, j + 2 * kLanes, j + 3 * kLanes)) return;
  }
  if (j == count) return;
  // The rest as four vectors as well: the last 4 * kLanes columns, or fewer in overlapping vectors.
  if (count >= 4 * kLanes) j = count - 4 * kLanes;
  const int last = count - kLanes;
  const int stride = (last - j + 2) / 3;
  block(j, j + stride, j + 2 * stride < last ? j + 2 * stride : last, last);
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
