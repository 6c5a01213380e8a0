// Attention of a block of queries with online softmax (Milakov and Gimelshein 2018; Dao et al.
// 2022, FlashAttention), for the number format of the including file.
//
// Everything is made of words of 32 bits, each one float or a pair of 16-bit numbers; `Format` says
// which. Both products are sums over words: acc += word * vector of words, 16 lanes at once, over
// the words of a head for the scores, over those of the keys for the output.

#pragma once

#include <immintrin.h>

#include "attention.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// Keys between two corrections of the sums; with their values they stay in the nearest caches while
// every tile of the queries passes over them.
constexpr int kKeyBlock = 256;

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline uint32_t load_word(const void* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// The running maximum of a query's scores, the sum of their exponentials relative to it, and the
// sums of the values with these weights.
struct State {
  float highest[kQueryBlock], sum[kQueryBlock];
  alignas(64) float values[kQueryBlock * kMostHeadSize];
};

// 2^x within 2e-7 of its value; 0 far below, and NaN for NaN.
inline __m512 exp2(__m512 x) {
  // The second operand is what the maximum gives for NaN.
  x = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-160.0f), x);
  const __m512 whole = _mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT);
  const __m512 part = _mm512_sub_ps(x, whole);
  // Least squares of the relative error on [-1/2, 1/2], with 2^0 exact.
  __m512 power = _mm512_set1_ps(1.3218672e-3f);
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(9.6716979e-3f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(5.550893e-2f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(2.4022238e-1f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(6.9314686e-1f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(0xffff, power, whole);
}

inline float highest_of(__m512 a) {
  __m512 b = _mm512_maskz_shuffle_f32x4(0xffff, a, a, 0x4e);
  a = _mm512_maskz_max_ps(0xffff, a, b);
  b = _mm512_maskz_shuffle_f32x4(0xffff, a, a, 0xb1);
  a = _mm512_maskz_max_ps(0xffff, a, b);
  b = _mm512_maskz_permute_ps(0xffff, a, 0x4e);
  a = _mm512_maskz_max_ps(0xffff, a, b);
  b = _mm512_maskz_permute_ps(0xffff, a, 0xb1);
  return _mm512_cvtss_f32(_mm512_maskz_max_ps(0xffff, a, b));
}

inline float sum_of(__m512 a) {
  a = _mm512_add_ps(a, _mm512_maskz_shuffle_f32x4(0xffff, a, a, 0x4e));
  a = _mm512_add_ps(a, _mm512_maskz_shuffle_f32x4(0xffff, a, a, 0xb1));
  a = _mm512_add_ps(a, _mm512_maskz_permute_ps(0xffff, a, 0x4e));
  a = _mm512_add_ps(a, _mm512_maskz_permute_ps(0xffff, a, 0xb1));
  return _mm512_cvtss_f32(a);
}

template <class Format>
struct Attention {
  using Element = typename Format::Element;
  static constexpr int kInWord = Format::kInWord;
  // 24 sums in registers hide the latency of the multiply-adds: 12 queries by 2 vectors of keys or
  // of the head.
  static constexpr int kTile = 12, kStrip = 2;
  static_assert(kQueryBlock % kTile == 0 && kKeyBlock % (kLanes * kStrip) == 0);

  static int64_t head_words(int64_t head_size) { return head_size / kInWord; }

  // Packed keys: [vector of keys][word of the head][lane]. Values: [word of keys][head].
  static int64_t key_words(int64_t keys, int64_t head_size) {
    return round_up(keys, kLanes) * head_words(head_size);
  }
  static int64_t packed_words(int64_t keys, int64_t head_size) {
    return key_words(keys, head_size) + round_up(keys, kInWord) / kInWord * head_size;
  }

  static void pack(const HeadKeys& head, uint32_t* packed) {
    const int64_t words = head_words(head.head_size);
    const auto place = [&](int64_t i) { return i / head.row * head.columns + i % head.row; };
    for (int64_t i = 0; i < round_up(head.count, kLanes); ++i) {
      uint32_t* to = packed + i / kLanes * words * kLanes + i % kLanes;
      if (i >= head.count) {
        for (int64_t d = 0; d < words; ++d) to[d * kLanes] = 0;
        continue;
      }
      const auto* from = static_cast<const Element*>(head.key) + place(i) * head.key_stride;
      for (int64_t d = 0; d < words; ++d) to[d * kLanes] = load_word(from + d * kInWord);
    }
    uint32_t* to = packed + key_words(head.count, head.head_size);
    for (int64_t i = 0; i < head.count; i += kInWord, to += head.head_size) {
      const Element* from[kInWord];
      for (int64_t j = 0; j < kInWord; ++j) {
        const auto* first = static_cast<const Element*>(head.value);
        from[j] = i + j < head.count ? first + place(i + j) * head.value_stride : nullptr;
      }
      for (int64_t d = 0; d < head.head_size; d += kLanes) Format::interleave(from, d, to + d);
    }
  }

  // scores[query][key] of a tile of queries with `Vectors` vectors of keys. Not inlined, so that
  // nothing else takes the registers of its sums.
  template <int Vectors>
  [[gnu::noinline]] static void score(const uint32_t* query, const uint32_t* keys, int64_t words,
                                      float* scores) {
    __m512 sums[kTile][Vectors];
#pragma GCC unroll 12
    for (int q = 0; q < kTile; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[q][v] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < words; ++d, query += kTile, keys += kLanes) {
      __m512i vectors[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) vectors[v] = _mm512_loadu_si512(keys + v * words * kLanes);
#pragma GCC unroll 12
      for (int q = 0; q < kTile; ++q) {
        const __m512i word = _mm512_set1_epi32(static_cast<int>(query[q]));
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          sums[q][v] = Format::multiply_add(sums[q][v], word, vectors[v]);
        }
      }
    }
#pragma GCC unroll 12
    for (int q = 0; q < kTile; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        _mm512_storeu_ps(scores + q * kKeyBlock + v * kLanes, sums[q][v]);
      }
    }
  }

  static void score_block(const uint32_t* query, const uint32_t* keys, int64_t words, int64_t count,
                          float* scores) {
    const int64_t vectors = round_up(count, kLanes) / kLanes;
    int64_t v = 0;
    const auto take = [&](auto score_some, int64_t some) {
      score_some(query, keys + v * words * kLanes, words, scores + v * kLanes);
      v += some;
    };
    while (v + kStrip <= vectors) take(score<kStrip>, kStrip);
    if (v < vectors) take(score<1>, 1);
    // What the padding of the last vector scored counts for nothing.
    for (int64_t i = count; i < vectors * kLanes; ++i) {
      for (int q = 0; q < kTile; ++q) scores[q * kKeyBlock + i] = -INFINITY;
    }
  }

  // The highest of `before` and the scores of one query.
  static float highest_score(const float* scores, int64_t count, float before) {
    __m512 most = _mm512_set1_ps(before);
    for (int64_t i = 0; i < count; i += kLanes) {
      most = _mm512_maskz_max_ps(0xffff, most, _mm512_loadu_ps(scores + i));
    }
    return highest_of(most);
  }

  // Scores of one query to weights, exp2(scale * (score - highest)), of which it returns the sum.
  // The row of scores has room for a whole number of words.
  static float weigh(const float* scores, int64_t count, float scale, float highest,
                     uint32_t* weights) {
    const int64_t vectors = round_up(count, kLanes) / kLanes;
    const __m512 factor = _mm512_set1_ps(scale), shift = _mm512_set1_ps(highest);
    __m512 total = _mm512_setzero_ps();
    for (int64_t v = 0; v < vectors; v += kInWord) {
      __m512 weight[kInWord];
      for (int j = 0; j < kInWord; ++j) {
        weight[j] = _mm512_setzero_ps();
        if (v + j >= vectors) continue;
        const __m512 score = _mm512_loadu_ps(scores + (v + j) * kLanes);
        // Not fused: the rounding of a product as large as the scores would not cancel.
        weight[j] = exp2(_mm512_mul_ps(_mm512_sub_ps(score, shift), factor));
        total = _mm512_add_ps(total, weight[j]);
      }
      Format::store_words(weight, weights + v / kInWord * kLanes);
    }
    return sum_of(total);
  }

  // Weighs the scores of a tile of queries and brings their running maxima and sums up to date;
  // `corrections` are what the sums of the values up to here are to be multiplied with. The maxima
  // come first, for all: one search waits for its last steps, and the next has begun meanwhile.
  static void weigh_block(const float* scores, int64_t count, float scale, float* highest,
                          float* sum, uint32_t* weights, float* corrections) {
    float now[kTile];
    for (int q = 0; q < kTile; ++q) {
      now[q] = highest_score(scores + q * kKeyBlock, count, highest[q]);
    }
    for (int q = 0; q < kTile; ++q) {
      corrections[q] = _mm512_cvtss_f32(exp2(_mm512_set1_ps((highest[q] - now[q]) * scale)));
      const float total =
          weigh(scores + q * kKeyBlock, count, scale, now[q], weights + q * kKeyBlock);
      sum[q] = sum[q] * corrections[q] + total;
      highest[q] = now[q];
    }
  }

  // Adds the values of a block of keys to `Vectors` vectors of the sums of a tile of queries.
  template <int Vectors>
  [[gnu::noinline]] static void add_values(const uint32_t* weights, const uint32_t* values,
                                           int64_t words, int64_t head_size,
                                           const float* corrections, float* out) {
    __m512 sums[kTile][Vectors];
#pragma GCC unroll 12
    for (int q = 0; q < kTile; ++q) {
      const __m512 correction = _mm512_set1_ps(corrections[q]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        const __m512 before = _mm512_loadu_ps(out + q * head_size + v * kLanes);
        sums[q][v] = _mm512_mul_ps(before, correction);
      }
    }
    for (int64_t i = 0; i < words; ++i, values += head_size) {
      __m512i vectors[Vectors];
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) vectors[v] = _mm512_loadu_si512(values + v * kLanes);
#pragma GCC unroll 12
      for (int q = 0; q < kTile; ++q) {
        const __m512i word = _mm512_set1_epi32(static_cast<int>(weights[q * kKeyBlock + i]));
#pragma GCC unroll 2
        for (int v = 0; v < Vectors; ++v) {
          sums[q][v] = Format::multiply_add(sums[q][v], word, vectors[v]);
        }
      }
    }
#pragma GCC unroll 12
    for (int q = 0; q < kTile; ++q) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) {
        _mm512_storeu_ps(out + q * head_size + v * kLanes, sums[q][v]);
      }
    }
  }

  static void add_block(const uint32_t* weights, const uint32_t* values, int64_t words,
                        int64_t head_size, const float* corrections, float* out) {
    int64_t d = 0;
    const auto take = [&](auto add_some, int64_t some) {
      add_some(weights, values + d, words, head_size, corrections, out + d);
      d += some * kLanes;
    };
    while (d + kStrip * kLanes <= head_size) take(add_values<kStrip>, kStrip);
    if (d < head_size) take(add_values<1>, 1);
  }

  // [tile][word of the head][query]; the last tile is filled up with the last query.
  static void pack_queries(const QueryBlock& block, int64_t words, uint32_t* to) {
    for (int64_t i = 0; i < round_up(block.count, kTile); ++i) {
      const int64_t row = i < block.count ? i : block.count - 1;
      const auto* from = static_cast<const Element*>(block.query) + row * block.query_stride;
      for (int64_t d = 0; d < words; ++d) {
        to[(i / kTile * words + d) * kTile + i % kTile] = load_word(from + d * kInWord);
      }
    }
  }

  static void attend(const QueryBlock& block, const HeadKeys& head, const uint32_t* packed) {
    const int64_t size = head.head_size, words = head_words(size);
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(size));
    const uint32_t* values = packed + key_words(head.count, size);
    const int64_t tiles = round_up(block.count, kTile) / kTile;
    uint32_t queries[kQueryBlock * kMostHeadSize];
    alignas(64) float scores[kTile * kKeyBlock];
    alignas(64) uint32_t weights[kTile * kKeyBlock];
    State state;
    pack_queries(block, words, queries);
    std::fill_n(state.values, tiles * kTile * size, 0.0f);
    std::fill_n(state.sum, kQueryBlock, 0.0f);
    // Finite, so that what scores -inf weighs 0 before anything higher is seen.
    std::fill_n(state.highest, kQueryBlock, -FLT_MAX);
    for (int64_t i = 0; i < head.count; i += kKeyBlock) {
      const int64_t count = std::min<int64_t>(head.count - i, kKeyBlock);
      for (int64_t t = 0; t < tiles; ++t) {
        score_block(queries + t * words * kTile, packed + i * words, words, count, scores);
        float corrections[kTile];
        weigh_block(scores, count, scale, state.highest + t * kTile, state.sum + t * kTile, weights,
                    corrections);
        add_block(weights, values + i / kInWord * size, round_up(count, kInWord) / kInWord, size,
                  corrections, state.values + t * kTile * size);
      }
    }
    for (int64_t q = 0; q < block.count; ++q) {
      block.logsumexp[q] = state.highest[q] * scale + std::log2(state.sum[q]);
      const __m512 share = _mm512_set1_ps(1.0f / state.sum[q]);
      auto* to = static_cast<Element*>(block.out) + q * block.out_stride;
      for (int64_t d = 0; d < size; d += kLanes) {
        Format::store(_mm512_mul_ps(_mm512_loadu_ps(state.values + q * size + d), share), to + d);
      }
    }
  }
};

template <class Format>
constexpr AttentionKernel make_attention() {
  return {Attention<Format>::packed_words, Attention<Format>::pack, Attention<Format>::attend};
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
