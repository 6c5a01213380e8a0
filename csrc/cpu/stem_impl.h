// How a ResNet begins, for the number format of the including file.
//
// The 7 pixels that an output has of a row lie side by side; their 21 numbers are multiplied as
// whole words, with a weight of 0 for what is too much in the last. What the convolution gives goes
// straight into the maximum over three rows, of a few columns at a time, which stays in the nearest
// cache: between convolution and maximum there is no image in memory.

#pragma once

#include <immintrin.h>

#include <algorithm>

#include "multiply_impl.h"
#include "stem.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Format>
struct Stem {
  using Element = typename Format::Element;

  static constexpr int kInRow = kStemKernel * kStemChannels;
  static constexpr int kWordsInRow = (kInRow + Format::kInWord - 1) / Format::kInWord;
  static constexpr int kWords = kStemKernel * kWordsInRow;
  // Pixels of a row under a tile of outputs, and one more for the number that is too much.
  static constexpr int kPixels = kStemStride * (kTile - 1) + kStemKernel + 1;
  // Columns of the maximum at a time, under which lie twice as many of the convolution.
  static constexpr int kColumns = 12;

  // The maximum over rows, as bits: [2][2 * kColumns][64] for the row that is finished next and the
  // one after it; and of the column to the left of these columns, [row][64].
  struct Storage {
    uint32_t* highest;
    uint32_t* left;
  };
  static constexpr int64_t kHighest = 2 * kColumns * kOutputStep;

  static size_t bytes(int64_t rows) {
    return (2 * kHighest + rows * kOutputStep) * sizeof(uint32_t);
  }

  // Neighbouring tiles share weights and most inputs, which are near.
  struct FetchNothing {
    void line(int64_t) const {}
    void word(int64_t) const {}
  };

  // A copy of the pixels under a tile, with zeros for those beyond the image.
  static void copy_padded(const Element* line, int64_t start, int64_t width, Element* to) {
    for (int k = 0; k < kPixels; ++k) {
      const int64_t x = start + k;
      for (int c = 0; c < kStemChannels; ++c) {
        to[k * kStemChannels + c] = x >= 0 && x < width ? line[x * kStemChannels + c] : Element{0};
      }
    }
  }

  // Raises `highest` to what ReLU leaves of a sum. Bits of numbers that are not negative are in the
  // order of the numbers, and those of NaN above them all.
  static void raise(uint32_t* highest, __m512 sum) {
    const __m512 rectified = _mm512_maskz_max_ps(0xffff, _mm512_setzero_ps(), sum);
    const __m512i bits = _mm512_castps_si512(_mm512_abs_ps(rectified));
    const __m512i held = _mm512_loadu_si512(highest);
    _mm512_storeu_si512(highest, _mm512_maskz_max_epi32(0xffff, held, bits));
  }

  // The convolution at (y, x) and the `count` - 1 columns behind it.
  static void convolve_tile(const StemProblem& problem, int64_t image, int64_t y, int64_t x,
                            int64_t count, const uint32_t* weights, const Element* bias,
                            uint32_t* highest, uint32_t* highest_too) {
    const int64_t top = y * kStemStride - kStemPadding, start = x * kStemStride - kStemPadding;
    const bool padded = start < 0 || start + kPixels > problem.width;
    Element copy[kPixels * kStemChannels];
    typename Multiply<Format>::Sums sums;
    Multiply<Format>::clear(sums);
    const int64_t last = std::min<int64_t>(kStemKernel, problem.height - top);
    for (int64_t row = std::max<int64_t>(0, -top); row < last; ++row) {
      const Element* line = static_cast<const Element*>(problem.input) +
                            (image * problem.height + top + row) * problem.width * kStemChannels;
      const Element* pixels = line + start * kStemChannels;
      if (padded) {
        copy_padded(line, start, problem.width, copy);
        pixels = copy;
      }
      const Element* rows[kTile];
      for (int t = 0; t < kTile; ++t) rows[t] = pixels + t * kStemStride * kStemChannels;
      Multiply<Format>::add_products(rows, weights + row * kWordsInRow * kOutputStep, kWordsInRow,
                                     FetchNothing(), sums);
    }
#pragma GCC unroll 6
    for (int t = 0; t < kTile; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) {
        const __m512 sum = _mm512_add_ps(sums[t][v], Format::load(bias + v * kLanes));
        const int64_t at = t * kOutputStep + v * kLanes;
        if (t < count && highest) raise(highest + at, sum);
        if (t < count && highest_too) raise(highest_too + at, sum);
      }
    }
  }

  // A row of outputs of these columns from the highest of three rows.
  static void finish(const uint32_t* highest, uint32_t* left, int64_t columns, Element* to,
                     int64_t outputs) {
    for (int64_t c = 0; c < kOutputStep; c += kLanes) {
      __m512i before = _mm512_loadu_si512(left + c);
      for (int64_t q = 0; q < columns; ++q) {
        const __m512i here = _mm512_loadu_si512(highest + 2 * q * kOutputStep + c);
        const __m512i behind = _mm512_loadu_si512(highest + (2 * q + 1) * kOutputStep + c);
        const __m512i most = _mm512_maskz_max_epi32(
            0xffff, _mm512_maskz_max_epi32(0xffff, before, here), behind);
        Format::store(_mm512_castsi512_ps(most), to + q * outputs + c);
        before = behind;
      }
      _mm512_storeu_si512(left + c, before);
    }
  }

  // Of one strip of outputs.
  static void convolve_strip(const StemProblem& problem, int64_t image, int64_t first,
                             int64_t count, int64_t strip, const Storage& storage) {
    const int64_t height = half_of(problem.height), width = half_of(problem.width);
    const int64_t columns = half_of(width), end = first + count;
    const int64_t* extent = problem.extents ? problem.extents + 2 * image : nullptr;
    const auto within = [&](int64_t side, int k) {
      return extent ? std::min(side, half_of(std::max<int64_t>(extent[k], 0))) : side;
    };
    const int64_t rows_inside = within(height, 0), columns_inside = within(width, 1);
    const auto* weights =
        static_cast<const uint32_t*>(problem.weight) + strip * kWords * kOutputStep;
    const auto* bias = static_cast<const Element*>(problem.bias) + strip * kOutputStep;
    auto* output = static_cast<Element*>(problem.output) + strip * kOutputStep;

    std::fill_n(storage.left, count * kOutputStep, 0u);
    for (int64_t q = 0; q < columns; q += kColumns) {
      const int64_t some = std::min<int64_t>(kColumns, columns - q);
      const int64_t x_end = std::min(2 * (q + some), columns_inside);
      std::fill_n(storage.highest, 2 * kHighest, 0u);
      for (int64_t y = std::max<int64_t>(0, 2 * first - 1); y < std::min(2 * end, height); ++y) {
        // An even row belongs to one maximum, an odd one also to the next.
        const int64_t p = y / 2;
        const auto of = [&](int64_t row) { return storage.highest + row % 2 * kHighest; };
        uint32_t* own = p >= first ? of(p) : nullptr;
        uint32_t* next = y % 2 == 1 && p + 1 < end ? of(p + 1) : nullptr;
        for (int64_t x = 2 * q; x < x_end && y < rows_inside; x += kTile) {
          const int64_t at = (x - 2 * q) * kOutputStep;
          convolve_tile(problem, image, y, x, std::min<int64_t>(kTile, x_end - x), weights, bias,
                        own ? own + at : nullptr, next ? next + at : nullptr);
        }
        if (own && (y % 2 == 1 || y + 1 == height)) {
          const int64_t pixel = (image * half_of(height) + p) * columns + q;
          finish(own, storage.left + (p - first) * kOutputStep, some,
                 output + pixel * problem.outputs, problem.outputs);
          std::fill_n(own, kHighest, 0u);
        }
      }
    }
  }

  static void convolve(const StemProblem& problem, int64_t image, int64_t first, int64_t count,
                       void* start) {
    auto* highest = static_cast<uint32_t*>(start);
    const Storage storage{highest, highest + 2 * kHighest};
    for (int64_t strip = 0; strip < problem.outputs / kOutputStep; ++strip) {
      convolve_strip(problem, image, first, count, strip, storage);
    }
  }
};

template <class Format>
constexpr StemKernel make_stem() {
  return {Stem<Format>::bytes, Stem<Format>::convolve};
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
