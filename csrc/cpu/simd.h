// Vectors of float and double for the instruction set that the including file is compiled for: it
// defines DETR_FAST_CAPABILITY as avx512, avx2 or portable before it includes this. Everything is
// in a namespace of that name, so that the linker never merges code for different instruction sets.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../matching_cost.h"

#if defined(DETR_FAST_AVX512) || defined(DETR_FAST_AVX2)
#include <immintrin.h>
#endif

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// Simd<T>: kLanes values of T in a Vector. Comparisons give one bit a lane, lane 0 the lowest.
// Indices has an int for each lane; track(low, at, a, indices) takes the lanes of a that are lower
// than low, with their indices; track_first also the indices of those that are equal, if lower;
// store_indices writes kLanes ints. load_first(count, p) reads `count` values, the other lanes are
// 0. lowest_two(first, second) are the lowest of all lanes of both, if no lane of `second` is below
// that of `first`. Simd<double> also loads floats, and lower(values, candidates, tags, tag) stores
// the candidates that are lower than the values, with the tag, and returns the lower of both.
template <class T>
struct Simd;

template <class T>
struct LowestTwo {
  T first, second;
};

#if defined(DETR_FAST_AVX512) || defined(DETR_FAST_AVX2)

inline float lowest_of(__m256 a) {
  __m128 b = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_min_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_min_ss(b, _mm_movehdup_ps(b)));
}

inline double lowest_of(__m256d a) {
  const __m128d b = _mm_min_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
  return _mm_cvtsd_f64(_mm_min_sd(b, _mm_unpackhi_pd(b, b)));
}

inline LowestTwo<float> lowest_two_of(__m256 first, __m256 second) {
  const auto join = [](__m128& a, __m128& b, __m128 other_a, __m128 other_b) {
    b = _mm_min_ps(_mm_min_ps(b, other_b), _mm_max_ps(a, other_a));
    a = _mm_min_ps(a, other_a);
  };
  __m128 a = _mm256_castps256_ps128(first), b = _mm256_castps256_ps128(second);
  join(a, b, _mm256_extractf128_ps(first, 1), _mm256_extractf128_ps(second, 1));
  join(a, b, _mm_movehl_ps(a, a), _mm_movehl_ps(b, b));
  join(a, b, _mm_movehdup_ps(a), _mm_movehdup_ps(b));
  return {_mm_cvtss_f32(a), _mm_cvtss_f32(b)};
}

inline LowestTwo<double> lowest_two_of(__m256d first, __m256d second) {
  const auto join = [](__m128d& a, __m128d& b, __m128d other_a, __m128d other_b) {
    b = _mm_min_pd(_mm_min_pd(b, other_b), _mm_max_pd(a, other_a));
    a = _mm_min_pd(a, other_a);
  };
  __m128d a = _mm256_castpd256_pd128(first), b = _mm256_castpd256_pd128(second);
  join(a, b, _mm256_extractf128_pd(first, 1), _mm256_extractf128_pd(second, 1));
  join(a, b, _mm_unpackhi_pd(a, a), _mm_unpackhi_pd(b, b));
  return {_mm_cvtsd_f64(a), _mm_cvtsd_f64(b)};
}

#endif

#if defined(DETR_FAST_AVX512)

// The masked forms with a full mask: GCC 12 warns of its own undefined source in the plain ones.
template <>
struct Simd<float> {
  using Vector = __m512;
  static constexpr int kLanes = 16;
  static __m256 low_half(Vector a) { return _mm512_maskz_extractf32x8_ps(0xff, a, 0); }
  static __m256 high_half(Vector a) { return _mm512_maskz_extractf32x8_ps(0xff, a, 1); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static Vector load_first(int count, const float* p) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
  }
  static void store(float* p, Vector a) { _mm512_storeu_ps(p, a); }
  static Vector broadcast(float a) { return _mm512_set1_ps(a); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector div(Vector a, Vector b) { return _mm512_div_ps(a, b); }
  static Vector power_of_last_bits(Vector a) {
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(a), 23));
  }
  static Vector min(Vector a, Vector b) { return _mm512_maskz_min_ps(0xffff, a, b); }
  static Vector max(Vector a, Vector b) { return _mm512_maskz_max_ps(0xffff, a, b); }
  static float lowest(Vector a) { return lowest_of(_mm256_min_ps(low_half(a), high_half(a))); }
  static LowestTwo<float> lowest_two(Vector first, Vector second) {
    const __m256 seconds = _mm256_min_ps(low_half(second), high_half(second));
    const __m256 losers = _mm256_max_ps(low_half(first), high_half(first));
    return lowest_two_of(_mm256_min_ps(low_half(first), high_half(first)),
                         _mm256_min_ps(seconds, losers));
  }
  static Vector abs(Vector a) { return _mm512_abs_ps(a); }
  static uint64_t equal(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }

  using Indices = __m512i;
  static Indices indices(int j) { return _mm512_set1_epi32(j); }
  static void store_indices(int* p, Indices at) { _mm512_storeu_si512(p, at); }
  static void track(Vector& low, Indices& at, Vector a, Indices j) {
    const __mmask16 lower = _mm512_cmp_ps_mask(a, low, _CMP_LT_OQ);
    at = _mm512_mask_blend_epi32(lower, at, j);
    low = min(a, low);
  }
  static void track_first(Vector& low, Indices& at, Vector a, Indices j) {
    const __mmask16 equal = _mm512_cmp_ps_mask(a, low, _CMP_EQ_OQ);
    at = _mm512_mask_min_epi32(at, equal, at, j);
    track(low, at, a, j);
  }
};

template <>
struct Simd<double> {
  using Vector = __m512d;
  static constexpr int kLanes = 8;
  static __m256d low_half(Vector a) { return _mm512_maskz_extractf64x4_pd(0xf, a, 0); }
  static __m256d high_half(Vector a) { return _mm512_maskz_extractf64x4_pd(0xf, a, 1); }
  static Vector load(const double* p) { return _mm512_loadu_pd(p); }
  static Vector load_first(int count, const double* p) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
  }
  static void store(double* p, Vector a) { _mm512_storeu_pd(p, a); }
  static Vector broadcast(double a) { return _mm512_set1_pd(a); }
  static Vector add(Vector a, Vector b) { return _mm512_add_pd(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm512_sub_pd(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm512_mul_pd(a, b); }
  static Vector div(Vector a, Vector b) { return _mm512_div_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm512_maskz_min_pd(0xff, a, b); }
  static Vector max(Vector a, Vector b) { return _mm512_maskz_max_pd(0xff, a, b); }
  static double lowest(Vector a) { return lowest_of(_mm256_min_pd(low_half(a), high_half(a))); }
  static LowestTwo<double> lowest_two(Vector first, Vector second) {
    const __m256d seconds = _mm256_min_pd(low_half(second), high_half(second));
    const __m256d losers = _mm256_max_pd(low_half(first), high_half(first));
    return lowest_two_of(_mm256_min_pd(low_half(first), high_half(first)),
                         _mm256_min_pd(seconds, losers));
  }
  static Vector abs(Vector a) { return _mm512_abs_pd(a); }
  static uint64_t equal(Vector a, Vector b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }

  using Indices = __m512i;
  static Indices indices(int j) { return _mm512_set1_epi64(j); }
  static void store_indices(int* p, Indices at) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi64_epi32(0xff, at));
  }
  static void track(Vector& low, Indices& at, Vector a, Indices j) {
    const __mmask8 lower = _mm512_cmp_pd_mask(a, low, _CMP_LT_OQ);
    at = _mm512_mask_blend_epi64(lower, at, j);
    low = min(a, low);
  }
  static void track_first(Vector& low, Indices& at, Vector a, Indices j) {
    const __mmask8 equal = _mm512_cmp_pd_mask(a, low, _CMP_EQ_OQ);
    at = _mm512_mask_min_epi64(at, equal, at, j);
    track(low, at, a, j);
  }

  static Vector load(const float* p) { return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p)); }
  static Vector load_first(int count, const float* p) {
    const auto some = static_cast<__mmask8>((1u << count) - 1);
    return _mm512_maskz_cvtps_pd(0xff, _mm256_maskz_loadu_ps(some, p));
  }
  static Vector lower(double* values, Vector candidates, int* tags, int tag) {
    const Vector held = load(values);
    const __mmask8 is_lower = _mm512_cmp_pd_mask(candidates, held, _CMP_LT_OQ);
    _mm256_mask_storeu_epi32(tags, is_lower, _mm256_set1_epi32(tag));
    // In full: what a masked store leaves cannot be loaded until it has reached the cache.
    const Vector lower = min(candidates, held);
    store(values, lower);
    return lower;
  }
};

#elif defined(DETR_FAST_AVX2)

template <>
struct Simd<float> {
  using Vector = __m256;
  static constexpr int kLanes = 8;
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static Vector load_first(int count, const float* p) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
  }
  static void store(float* p, Vector a) { _mm256_storeu_ps(p, a); }
  static Vector broadcast(float a) { return _mm256_set1_ps(a); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector div(Vector a, Vector b) { return _mm256_div_ps(a, b); }
  static Vector power_of_last_bits(Vector a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
  }
  static Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
  static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static float lowest(Vector a) { return lowest_of(a); }
  static LowestTwo<float> lowest_two(Vector first, Vector second) {
    return lowest_two_of(first, second);
  }
  static Vector abs(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static uint64_t equal(Vector a, Vector b) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
  }

  using Indices = __m256i;
  static Indices indices(int j) { return _mm256_set1_epi32(j); }
  static void store_indices(int* p, Indices at) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), at);
  }
  static void track(Vector& low, Indices& at, Vector a, Indices j) {
    const __m256i lower = _mm256_castps_si256(_mm256_cmp_ps(a, low, _CMP_LT_OQ));
    at = _mm256_blendv_epi8(at, j, lower);
    low = min(a, low);
  }
  static void track_first(Vector& low, Indices& at, Vector a, Indices j) {
    const __m256i equal = _mm256_castps_si256(_mm256_cmp_ps(a, low, _CMP_EQ_OQ));
    at = _mm256_blendv_epi8(at, _mm256_min_epi32(at, j), equal);
    track(low, at, a, j);
  }
};

template <>
struct Simd<double> {
  using Vector = __m256d;
  static constexpr int kLanes = 4;
  static Vector load(const double* p) { return _mm256_loadu_pd(p); }
  static Vector load_first(int count, const double* p) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), lane));
  }
  static void store(double* p, Vector a) { _mm256_storeu_pd(p, a); }
  static Vector broadcast(double a) { return _mm256_set1_pd(a); }
  static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
  static Vector sub(Vector a, Vector b) { return _mm256_sub_pd(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mul_pd(a, b); }
  static Vector div(Vector a, Vector b) { return _mm256_div_pd(a, b); }
  static Vector min(Vector a, Vector b) { return _mm256_min_pd(a, b); }
  static Vector max(Vector a, Vector b) { return _mm256_max_pd(a, b); }
  static double lowest(Vector a) { return lowest_of(a); }
  static LowestTwo<double> lowest_two(Vector first, Vector second) {
    return lowest_two_of(first, second);
  }
  static Vector abs(Vector a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static uint64_t equal(Vector a, Vector b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ)));
  }

  using Indices = __m256i;
  static Indices indices(int j) { return _mm256_set1_epi64x(j); }
  static void store_indices(int* p, Indices at) {
    const __m256i lower_halves = _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(at, lower_halves)));
  }
  static void track(Vector& low, Indices& at, Vector a, Indices j) {
    const __m256i lower = _mm256_castpd_si256(_mm256_cmp_pd(a, low, _CMP_LT_OQ));
    at = _mm256_blendv_epi8(at, j, lower);
    low = min(a, low);
  }
  static void track_first(Vector& low, Indices& at, Vector a, Indices j) {
    const __m256i equal = _mm256_castpd_si256(_mm256_cmp_pd(a, low, _CMP_EQ_OQ));
    const __m256i earlier = _mm256_and_si256(equal, _mm256_cmpgt_epi64(at, j));
    at = _mm256_blendv_epi8(at, j, earlier);
    track(low, at, a, j);
  }

  static Vector load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  static Vector load_first(int count, const float* p) {
    const __m128i some = _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3));
    return _mm256_cvtps_pd(_mm_maskload_ps(p, some));
  }
  static Vector lower(double* values, Vector candidates, int* tags, int tag) {
    const Vector held = load(values);
    const __m256 is_lower = _mm256_castpd_ps(_mm256_cmp_pd(candidates, held, _CMP_LT_OQ));
    const __m128 tagged = _mm_shuffle_ps(_mm256_castps256_ps128(is_lower),
                                         _mm256_extractf128_ps(is_lower, 1), 0x88);
    auto* place = reinterpret_cast<__m128i*>(tags);
    _mm_storeu_si128(place, _mm_blendv_epi8(_mm_loadu_si128(place), _mm_set1_epi32(tag),
                                            _mm_castps_si128(tagged)));
    const Vector lower = min(candidates, held);
    store(values, lower);
    return lower;
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
  static Vector load_first(int count, const T* p) {
    return make([=](int k) { return k < count ? p[k] : T{0}; });
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
  static Vector mul(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] * b.lane[k]; });
  }
  static Vector div(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] / b.lane[k]; });
  }
  static Vector power_of_last_bits(Vector a) {
    return make([&](int k) { return OneFloat::power_of_last_bits(a.lane[k]); });
  }
  static Vector min(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] < b.lane[k] ? a.lane[k] : b.lane[k]; });
  }
  static Vector max(Vector a, Vector b) {
    return make([&](int k) { return a.lane[k] > b.lane[k] ? a.lane[k] : b.lane[k]; });
  }
  static T lowest(Vector a) {
    T low = a.lane[0];
    for (int k = 1; k < kLanes; ++k) low = a.lane[k] < low ? a.lane[k] : low;
    return low;
  }
  static LowestTwo<T> lowest_two(Vector first, Vector second) {
    LowestTwo<T> low{first.lane[0], second.lane[0]};
    for (int k = 1; k < kLanes; ++k) {
      const T higher = first.lane[k] < low.first ? low.first : first.lane[k];
      low.first = first.lane[k] < low.first ? first.lane[k] : low.first;
      low.second = higher < low.second ? higher : low.second;
      low.second = second.lane[k] < low.second ? second.lane[k] : low.second;
    }
    return low;
  }
  static Vector abs(Vector a) {
    return make([&](int k) { return __builtin_fabs(a.lane[k]); });
  }
  static uint64_t equal(Vector a, Vector b) {
    uint64_t bits = 0;
    for (int k = 0; k < kLanes; ++k) {
      bits |= static_cast<uint64_t>(a.lane[k] == b.lane[k]) << k;
    }
    return bits;
  }

  struct Indices {
    int lane[kLanes];
  };
  static Indices indices(int j) {
    Indices all;
    for (int k = 0; k < kLanes; ++k) all.lane[k] = j;
    return all;
  }
  static void store_indices(int* p, const Indices& at) { std::memcpy(p, at.lane, sizeof at.lane); }
  static void track(Vector& low, Indices& at, Vector a, const Indices& j) {
    for (int k = 0; k < kLanes; ++k) {
      if (a.lane[k] < low.lane[k]) {
        low.lane[k] = a.lane[k];
        at.lane[k] = j.lane[k];
      }
    }
  }
  static void track_first(Vector& low, Indices& at, Vector a, const Indices& j) {
    for (int k = 0; k < kLanes; ++k) {
      if (a.lane[k] == low.lane[k] && j.lane[k] < at.lane[k]) at.lane[k] = j.lane[k];
    }
    track(low, at, a, j);
  }

  static Vector load(const std::conditional_t<sizeof(T) == 8, float, double>* p) {
    return make([&](int k) { return p[k]; });
  }
  static Vector load_first(int count, const std::conditional_t<sizeof(T) == 8, float, double>* p) {
    return make([=](int k) { return k < count ? p[k] : 0; });
  }
  static Vector lower(T* values, Vector candidates, int* tags, int tag) {
    return make([&](int k) {
      if (candidates.lane[k] < values[k]) {
        values[k] = candidates.lane[k];
        tags[k] = tag;
      }
      return values[k];
    });
  }

 private:
  template <class Value>
  static Vector make(const Value& value) {
    Vector a;
    for (int k = 0; k < kLanes; ++k) a.lane[k] = static_cast<T>(value(k));
    return a;
  }
};

#endif

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
