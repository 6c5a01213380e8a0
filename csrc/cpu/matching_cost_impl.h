// The matching costs of one image in one prediction set, for the instruction set of the including
// file. The loops run over queries, which are contiguous in every array they touch.

#pragma once

#include "kernels.h"
#include "simd_softmax.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// What the cost needs of every query, each an array of `queries` entries.
template <class T>
struct QueryArrays {
  static constexpr int kArrays = 11;

  QueryArrays(T* storage, int64_t queries)
      : cx(storage), cy(cx + queries), w(cy + queries), h(w + queries), x0(h + queries),
        y0(x0 + queries), x1(y0 + queries), y1(x1 + queries), area(y1 + queries),
        largest(area + queries), inverse(largest + queries) {}

  CostBox<T> box(int64_t q) const {
    return {cx[q], cy[q], w[q], h[q], x0[q], y0[q], x1[q], y1[q], area[q]};
  }

  T *cx, *cy, *w, *h, *x0, *y0, *x1, *y1, *area;
  T *largest, *inverse;  // of softmax, see kSoftmaxParts
};

inline size_t matching_cost_bytes(int64_t queries, size_t cost_bytes) {
  return QueryArrays<float>::kArrays * cost_bytes * static_cast<size_t>(queries);
}

template <bool kEps, bool kSquare, class T>
inline void focal_terms_as(T* row, int64_t count, FocalParameters focal) {
  for (int64_t q = 0; q < count; ++q) row[q] = focal_term<kEps, kSquare>(row[q], focal);
}

// Replaces logits by their class terms.
template <class T>
inline void focal_terms(T* row, int64_t count, const FocalParameters& focal) {
  const bool square = focal.gamma == 2;
  if (focal.eps == 0) {
    (square ? focal_terms_as<false, true, T> : focal_terms_as<false, false, T>)(row, count, focal);
  } else {
    (square ? focal_terms_as<true, true, T> : focal_terms_as<true, false, T>)(row, count, focal);
  }
}

// Writes cost[t * queries + q]; `storage` has matching_cost_bytes, aligned for T.
template <class T>
void matching_cost_of_image(const ImageMatching<T>& image, const MatchingOptions& options, T* cost,
                            void* storage) {
  const int64_t queries = image.queries;
  const QueryArrays<T> of(static_cast<T*>(storage), queries);
  const CostWeights weights = options.weights;  // a copy, which no store to `cost` can change
  for (int64_t q = 0; q < queries; ++q) {
    const T* b = image.boxes + 4 * q;
    of.cx[q] = b[0], of.cy[q] = b[1], of.w[q] = b[2], of.h[q] = b[3];
  }
  // More arrays than a compiler compares the addresses of, to find that they do not overlap.
#ifndef __clang__
#pragma GCC ivdep
#endif
  for (int64_t q = 0; q < queries; ++q) {
    const CostBox<T> box = cost_box(of.cx[q], of.cy[q], of.w[q], of.h[q]);
    of.x0[q] = box.x0, of.y0[q] = box.y0, of.x1[q] = box.x1, of.y1[q] = box.y1;
    of.area[q] = box.area;
  }
  // One pass over the logits, which are most of what is read.
  constexpr int kBlock = Simd<T>::kLanes;
  for (int64_t first = 0; first < queries; first += kBlock) {
    const int count = static_cast<int>(queries - first < kBlock ? queries - first : kBlock);
    const T* logits = image.logits + first * image.classes;
    if (!options.focal) {
      softmax_statistics(logits, count, image.classes, of.largest + first, of.inverse + first);
    }
    for (int q = 0; q < count; ++q) {
      T* own = cost + first + q;
      for (int64_t t = 0; t < image.targets; ++t) {
        own[t * queries] = logits[q * image.classes + image.labels[t]];
      }
    }
  }
  for (int64_t t = 0; t < image.targets; ++t) {
    const T* b = image.target_boxes + 4 * t;
    const CostBox<T> target = cost_box(b[0], b[1], b[2], b[3]);
    T* row = cost + t * queries;
    if (options.focal) {
      focal_terms(row, queries, options.focal_parameters);
    } else {
      for (int64_t q = 0; q < queries; ++q) {
        row[q] = -exp_of_difference(row[q], of.largest[q]) * of.inverse[q];
      }
    }
    for (int64_t q = 0; q < queries; ++q) {
      row[q] = matching_cost(of.box(q), target, row[q], weights);
    }
    if (image.extra) {
      const T* extra = image.extra + t * image.extra_stride;
      for (int64_t q = 0; q < queries; ++q) row[q] += extra[q];
    }
    if (options.range) {
      const CostRange range = *options.range;
      for (int64_t q = 0; q < queries; ++q) row[q] = within_range(row[q], range);
    }
  }
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
