// Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv:1509.09308) for the number format of the including
// file: every 2x2 outputs from 4x4 inputs, with 16 products where 36 would be.
//
// The inputs of a few tiles are transformed once. Then, 64 outputs at a time, 16 matrix products,
// [tiles, channels] by [channels, outputs], and the transform of what they gave. All of it stays in
// the nearer caches but the weights, of which each product reads its own, one after another.
//
// What a tile gives depends neither on its place among the others nor on how many they are.

#pragma once

#include "multiply_impl.h"
#include "winograd.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

static_assert(kChannelStep % kLanes == 0);
// Transformed inputs of one tile, in a 4x4 grid.
constexpr int kSide = 4, kPlanes = kSide * kSide;

inline int64_t rows_for(int64_t tiles) { return (tiles + kTile - 1) / kTile * kTile; }

// The upper left output of a tile. It can lie beyond the image where that is dilated.
struct Corner {
  int64_t image, y, x;
};

inline Corner corner_of(const WinogradProblem& problem, int64_t tile) {
  const auto start = [&](int64_t i) {
    return i / problem.dilation * 2 * problem.dilation + i % problem.dilation;
  };
  const int64_t row = tile / problem.tile_columns;
  return {row / problem.tile_rows, start(row % problem.tile_rows),
          start(tile % problem.tile_columns)};
}

inline bool inside(const WinogradProblem& problem, int64_t y, int64_t x) {
  return y >= 0 && y < problem.height && x >= 0 && x < problem.width;
}

template <class Format>
struct Winograd {
  using Element = typename Format::Element;
  using Product = Multiply<Format>;

  // Where the parts of the storage lie: transformed inputs [plane][tile][channel], products
  // [plane][tile][output of a strip], and zeros in place of a pixel beyond the image.
  struct Storage {
    Element* inputs;
    float* products;
    Element* zeros;
    int64_t input_plane, product_plane;  // from one to the next, in elements
    size_t bytes;

    Storage(const WinogradProblem& problem, int64_t tiles, void* start) {
      const int64_t rows = rows_for(tiles);
      // A line more, so that planes do not all fall into the same set of a cache.
      const int64_t input_bytes = rows * problem.channels * sizeof(Element) + kLineBytes;
      const int64_t product_bytes = rows * kOutputStep * sizeof(float) + kLineBytes;
      char* at = static_cast<char*>(start);
      inputs = reinterpret_cast<Element*>(at);
      products = reinterpret_cast<float*>(at + kPlanes * input_bytes);
      zeros = reinterpret_cast<Element*>(at + kPlanes * (input_bytes + product_bytes));
      input_plane = input_bytes / sizeof(Element);
      product_plane = product_bytes / sizeof(float);
      bytes = kPlanes * (input_bytes + product_bytes) + problem.channels * sizeof(Element);
    }
  };

  static size_t bytes(const WinogradProblem& problem, int64_t tiles) {
    return Storage(problem, tiles, nullptr).bytes;
  }

  // B^T d B of all channels of a tile, where B^T is
  //   1  0 -1  0
  //   0  1  1  0
  //   0 -1  1  0
  //   0  1  0 -1
  static void transform_input(const WinogradProblem& problem, const Corner& corner,
                              const Element* zeros, Element* to, int64_t plane) {
    const auto* input = static_cast<const Element*>(problem.input);
    const Element* pixels[kSide][kSide];
    for (int i = 0; i < kSide; ++i) {
      for (int j = 0; j < kSide; ++j) {
        const int64_t y = corner.y + (i - 1) * problem.dilation;
        const int64_t x = corner.x + (j - 1) * problem.dilation;
        const int64_t pixel = (corner.image * problem.height + y) * problem.width + x;
        pixels[i][j] = inside(problem, y, x) ? input + pixel * problem.channels : zeros;
      }
    }
    for (int64_t c = 0; c < problem.channels; c += kLanes) {
      __m512 half[kSide][kSide];
#pragma GCC unroll 4
      for (int j = 0; j < kSide; ++j) {
        const __m512 first = Format::load(pixels[0][j] + c);
        const __m512 second = Format::load(pixels[1][j] + c);
        const __m512 third = Format::load(pixels[2][j] + c);
        const __m512 fourth = Format::load(pixels[3][j] + c);
        half[0][j] = _mm512_sub_ps(first, third);
        half[1][j] = _mm512_add_ps(second, third);
        half[2][j] = _mm512_sub_ps(third, second);
        half[3][j] = _mm512_sub_ps(second, fourth);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kSide; ++i) {
        Element* row = to + kSide * i * plane + c;
        Format::store(_mm512_sub_ps(half[i][0], half[i][2]), row);
        Format::store(_mm512_add_ps(half[i][1], half[i][2]), row + plane);
        Format::store(_mm512_sub_ps(half[i][2], half[i][1]), row + 2 * plane);
        Format::store(_mm512_sub_ps(half[i][1], half[i][3]), row + 3 * plane);
      }
    }
  }

  // Asks for weights: in a large layer all of them have room only in the third cache.
  struct FetchWeights {
    const uint32_t* next;
    void line(int64_t) const {}
    void word(int64_t w) const {
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) {
        prefetch_to_second_cache(next + w * kOutputStep + v * kLanes);
      }
    }
  };

  // `kTile` rows of inputs times the weights of one strip; those that are `next` are on their way
  // meanwhile.
  static void multiply(const Element* inputs, const uint32_t* weights, const uint32_t* next,
                       int64_t channels, float* products) {
    const Element* rows[kTile];
    for (int t = 0; t < kTile; ++t) rows[t] = inputs + t * channels;
    typename Product::Sums sums;
    Product::multiply(rows, weights, channels / Format::kInWord, FetchWeights{next}, sums);
#pragma GCC unroll 6
    for (int t = 0; t < kTile; ++t) {
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) {
        _mm512_storeu_ps(products + t * kOutputStep + v * kLanes, sums[t][v]);
      }
    }
  }

  // A^T m A of one strip of a tile, with what follows, where A^T is
  //   1  1  1  0
  //   0  1 -1 -1
  static void transform_output(const WinogradProblem& problem, const Corner& corner,
                               int64_t first_output, const float* products, int64_t plane) {
    Element* pixels[2][2];
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const int64_t y = corner.y + i * problem.dilation, x = corner.x + j * problem.dilation;
        const int64_t pixel = (corner.image * problem.height + y) * problem.width + x;
        auto* output = static_cast<Element*>(problem.output) + first_output;
        pixels[i][j] = inside(problem, y, x) ? output + pixel * problem.outputs : nullptr;
      }
    }
    const auto* bias = static_cast<const Element*>(problem.bias) + first_output;
    const __m512 least = Product::least(problem.relu);
    for (int64_t c = 0; c < kOutputStep; c += kLanes) {
      __m512 half[2][kSide];
#pragma GCC unroll 4
      for (int j = 0; j < kSide; ++j) {
        const float* from = products + j * plane + c;
        const __m512 first = _mm512_loadu_ps(from);
        const __m512 second = _mm512_loadu_ps(from + kSide * plane);
        const __m512 third = _mm512_loadu_ps(from + 2 * kSide * plane);
        const __m512 fourth = _mm512_loadu_ps(from + 3 * kSide * plane);
        half[0][j] = _mm512_add_ps(_mm512_add_ps(first, second), third);
        half[1][j] = _mm512_sub_ps(_mm512_sub_ps(second, third), fourth);
      }
      const __m512 shift = Format::load(bias + c);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const __m512 (&a)[kSide] = half[i];
        finish(problem, _mm512_add_ps(_mm512_add_ps(a[0], a[1]), a[2]), shift, least,
               pixels[i][0], c);
        finish(problem, _mm512_sub_ps(_mm512_sub_ps(a[1], a[2]), a[3]), shift, least,
               pixels[i][1], c);
      }
    }
  }

  // Nothing where the pixel lies beyond the image.
  static void finish(const WinogradProblem& problem, __m512 sum, __m512 bias, __m512 least,
                     Element* pixel, int64_t c) {
    if (pixel) Product::finish(sum, bias, problem.add, least, pixel + c);
  }

  static void convolve(const WinogradProblem& problem, int64_t first, int64_t count, void* start) {
    const int64_t rows = rows_for(count), channels = problem.channels;
    const int64_t words = channels / Format::kInWord;
    const Storage storage(problem, count, start);
    std::memset(storage.zeros, 0, channels * sizeof(Element));
    for (int64_t t = 0; t < count; ++t) {
      transform_input(problem, corner_of(problem, first + t), storage.zeros,
                      storage.inputs + t * channels, storage.input_plane);
    }
    // What fills up the last rows is multiplied and not looked at; left as it is, it could be slow.
    for (int p = 0; p < kPlanes; ++p) {
      std::memset(storage.inputs + p * storage.input_plane + count * channels, 0,
                  (rows - count) * channels * sizeof(Element));
    }
    const auto* weights = static_cast<const uint32_t*>(problem.weight);
    const auto* end = weights + kPlanes * words * problem.outputs;
    for (int64_t o = 0; o < problem.outputs; o += kOutputStep) {
      for (int p = 0; p < kPlanes; ++p) {
        const uint32_t* next = weights + words * kOutputStep;
        // Other tiles begin with the first ones.
        if (next == end) next = static_cast<const uint32_t*>(problem.weight);
        for (int64_t t = 0; t < rows; t += kTile) {
          multiply(storage.inputs + p * storage.input_plane + t * channels, weights, next, channels,
                   storage.products + p * storage.product_plane + t * kOutputStep);
        }
        weights = next;
      }
      for (int64_t t = 0; t < count; ++t) {
        transform_output(problem, corner_of(problem, first + t), o,
                         storage.products + t * kOutputStep, storage.product_plane);
      }
    }
  }
};

template <class Format>
constexpr WinogradKernel make_winograd() {
  return {Winograd<Format>::bytes, Winograd<Format>::convolve};
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
