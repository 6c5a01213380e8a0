// 1x1 convolutions for the number format of the including file. The inputs of a block of pixels
// stay in the second cache, the weights of a strip in the nearest ones, while every tile of the
// block passes over them; bias, sum and ReLU follow in registers.
//
// Inputs and outputs come from afar, and a tile takes no longer than they do: without asking for
// them ahead the products wait for memory.

#pragma once

#include "multiply_impl.h"
#include "pointwise.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Format>
struct Pointwise {
  using Element = typename Format::Element;
  using Product = Multiply<Format>;

  // Asks for the inputs of the next tile.
  struct FetchInputs {
    const Element* const* rows;
    bool wanted;
    void word(int64_t) const {}
    void line(int64_t w) const {
      if (!wanted) return;
#pragma GCC unroll 6
      for (int t = 0; t < kTile; ++t) prefetch(rows[t] + w * Format::kInWord);
    }
  };

  // `count` rows, to outputs that lie one after another; `rows` has those of the next tile, too.
  static void multiply(const PointwiseProblem& problem, const Element* const* rows, int64_t count,
                       int64_t strip, bool fetch_inputs, Element* to) {
    for (int64_t t = 0; t < count; ++t) {
      const auto* row = reinterpret_cast<const char*>(to + t * problem.outputs);
      for (size_t at = 0; at < kOutputStep * sizeof(Element); at += kLineBytes) prefetch(row + at);
    }
    const int64_t words = problem.channels / Format::kInWord;
    const auto* weights = static_cast<const uint32_t*>(problem.weight);
    const Element* const tile[kTile] = {rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]};
    typename Product::Sums sums;
    Product::multiply(tile, weights + strip * words * kOutputStep, words,
                      FetchInputs{rows + kTile, fetch_inputs}, sums);
    const auto* bias = static_cast<const Element*>(problem.bias) + strip * kOutputStep;
    const __m512 least = Product::least(problem.relu);
#pragma GCC unroll 4
    for (int v = 0; v < kStrip; ++v) {
      const __m512 shift = Format::load(bias + v * kLanes);
#pragma GCC unroll 6
      for (int t = 0; t < kTile; ++t) {
        if (t == count) break;
        Product::finish(sums[t][v], shift, problem.add, least,
                        to + t * problem.outputs + v * kLanes);
      }
    }
  }

  // The inputs of the pixels of a block; those of the last fill up its last tile and stand for one
  // that would follow.
  static void find_rows(const PointwiseProblem& problem, const PointwiseBlock& block,
                        const Element* (&rows)[kMostPixels + kTile]) {
    const auto* input = static_cast<const Element*>(problem.input);
    int64_t x = block.first_pixel % problem.output_width;
    int64_t y = block.first_pixel / problem.output_width;
    int64_t image = y / problem.output_height;
    y %= problem.output_height;
    for (int64_t i = 0; i < block.pixels; ++i) {
      const int64_t row = image * problem.height + y * problem.stride;
      rows[i] = input + (row * problem.width + x * problem.stride) * problem.channels;
      if (++x < problem.output_width) continue;
      x = 0;
      if (++y < problem.output_height) continue;
      y = 0;
      ++image;
    }
    std::fill(rows + block.pixels, rows + kMostPixels + kTile, rows[block.pixels - 1]);
  }

  static void convolve(const PointwiseProblem& problem, const PointwiseBlock& block) {
    const Element* rows[kMostPixels + kTile];
    find_rows(problem, block, rows);
    auto* output = static_cast<Element*>(problem.output) + block.first_pixel * problem.outputs;
    for (int64_t s = block.first_strip; s < block.end_strip; ++s) {
      for (int64_t t = 0; t < block.pixels; t += kTile) {
        multiply(problem, rows + t, std::min<int64_t>(kTile, block.pixels - t), s,
                 s == block.first_strip, output + t * problem.outputs + s * kOutputStep);
      }
    }
  }
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
