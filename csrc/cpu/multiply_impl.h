// Products with packed weights for the number format of the including file, a tile of sums at a
// time: `kTile` rows of inputs by one strip of outputs.
//
// Sums are in float32 and always in the same order, over the channels from the first to the last.
// What a row gives depends neither on its place among the others nor on how many they are.

#pragma once

#include <immintrin.h>

#include "multiply.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// 24 sums in registers hide the latency of the multiply-adds: 6 rows by 4 vectors of outputs.
constexpr int kTile = kTileRows, kStrip = kOutputStep / kLanes;
static_assert(kOutputStep % kLanes == 0);

constexpr int64_t kLineBytes = 64;
constexpr int64_t kWordsInLine = kLineBytes / sizeof(uint32_t);

inline void prefetch(const void* from) {
  _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
}

inline void prefetch_to_second_cache(const void* from) {
  _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
}

template <class Format>
struct Multiply {
  using Element = typename Format::Element;
  using Sums = __m512[kTile][kStrip];

  // What follows is inlined, so that the sums stay in registers.
  [[gnu::always_inline]] static inline void clear(Sums& sums) {
#pragma GCC unroll 6
    for (int t = 0; t < kTile; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) sums[t][v] = _mm512_setzero_ps();
    }
  }

  // The rows times the weights of one strip, [word of channels][output]. To ask for what is needed
  // next, `fetch.line(w)` is called before the words of every line of the inputs, `fetch.word(w)`
  // before every word.
  template <class Fetch>
  [[gnu::always_inline]] static inline void multiply(const Element* const (&rows)[kTile],
                                                     const uint32_t* weights, int64_t words,
                                                     const Fetch& fetch, Sums& sums) {
    clear(sums);
    add_products(rows, weights, words, fetch, sums);
  }

  // The same, added to sums.
  template <class Fetch>
  [[gnu::always_inline]] static inline void add_products(const Element* const (&rows)[kTile],
                                                         const uint32_t* weights, int64_t words,
                                                         const Fetch& fetch, Sums& sums) {
    for (int64_t line = 0; line < words; line += kWordsInLine) {
      fetch.line(line);
      const int64_t end = line + kWordsInLine < words ? line + kWordsInLine : words;
      for (int64_t w = line; w < end; ++w) {
        fetch.word(w);
        __m512i vectors[kStrip];
#pragma GCC unroll 4
        for (int v = 0; v < kStrip; ++v) {
          vectors[v] = _mm512_loadu_si512(weights + w * kOutputStep + v * kLanes);
        }
#pragma GCC unroll 6
        for (int t = 0; t < kTile; ++t) {
          int32_t word;
          std::memcpy(&word, rows[t] + w * Format::kInWord, sizeof(word));
          const __m512i input = _mm512_set1_epi32(word);
#pragma GCC unroll 4
          for (int v = 0; v < kStrip; ++v) {
            sums[t][v] = Format::multiply_add(sums[t][v], input, vectors[v]);
          }
        }
      }
    }
  }

  // Writes the larger of `least` and the sum with its bias and, where `add`, with what `to` holds.
  static void finish(__m512 sum, __m512 bias, bool add, __m512 least, Element* to) {
    sum = _mm512_add_ps(sum, bias);
    if (add) sum = _mm512_add_ps(sum, Format::load(to));
    // The second operand is what the maximum gives for NaN.
    Format::store(_mm512_maskz_max_ps(0xffff, least, sum), to);
  }

  // What no result of an operation with `relu` falls below.
  static __m512 least(bool relu) { return _mm512_set1_ps(relu ? 0.0f : -INFINITY); }
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
