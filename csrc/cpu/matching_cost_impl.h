// The matching costs of one image in one prediction set, for the instruction set of the including
// file. The loops run over queries, which are contiguous in every array they touch.

#pragma once

#include <cmath>

#include "kernels.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class T>
struct HostMath {
  static T exp(T x) { return std::exp(x); }
  static T log(T x) { return std::log(x); }
  static T pow(T x, T y) { return std::pow(x, y); }
};

inline float decay(float x) { return exp_of_negative(x); }
inline double decay(double x) { return std::exp(x); }

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
  T* largest;  // logit of the query
  T* inverse;  // of the sum of exponentials of its logits, relative to the largest
};

inline size_t matching_cost_bytes(int64_t queries, size_t cost_bytes) {
  return QueryArrays<float>::kArrays * cost_bytes * static_cast<size_t>(queries);
}

// Largest of `count` values and the inverse of the sum of their exponentials relative to it. NaN
// does not raise the largest, but it is in the sum.
template <class T>
inline void softmax_statistics(const T* logits, int64_t count, T& largest, T& inverse) {
  // As many accumulators whatever the vectors, so that the sum is the same on every machine.
  constexpr int kWays = 16;
  T high[kWays], sum[kWays];
  for (int k = 0; k < kWays; ++k) {
    high[k] = logits[0];
    sum[k] = 0;
  }
  const int64_t even = count / kWays * kWays;
  for (int64_t c = 0; c < even; c += kWays) {
    for (int k = 0; k < kWays; ++k) high[k] = larger(high[k], logits[c + k]);
  }
  for (int64_t c = even; c < count; ++c) high[c - even] = larger(high[c - even], logits[c]);
  T top = high[0];
  for (int k = 1; k < kWays; ++k) top = larger(top, high[k]);
  for (int64_t c = 0; c < even; c += kWays) {
    for (int k = 0; k < kWays; ++k) sum[k] += decay(logits[c + k] - top);
  }
  for (int64_t c = even; c < count; ++c) sum[c - even] += decay(logits[c] - top);
  T total = 0;
  for (int k = 0; k < kWays; ++k) total += sum[k];
  largest = top;
  inverse = T(1) / total;
}

// Writes cost[t * queries + q]; `storage` has matching_cost_bytes, aligned for T.
template <class T>
void matching_cost_of_image(const ImageMatching<T>& image, const MatchingOptions& options, T* cost,
                            void* storage) {
  const int64_t queries = image.queries;
  const QueryArrays<T> of(static_cast<T*>(storage), queries);
  for (int64_t q = 0; q < queries; ++q) {
    const T* b = image.boxes + 4 * q;
    const CostBox<T> box = cost_box(b[0], b[1], b[2], b[3]);
    of.cx[q] = box.cx, of.cy[q] = box.cy, of.w[q] = box.w, of.h[q] = box.h;
    of.x0[q] = box.x0, of.y0[q] = box.y0, of.x1[q] = box.x1, of.y1[q] = box.y1;
    of.area[q] = box.area;
  }
  if (!options.focal) {
    for (int64_t q = 0; q < queries; ++q) {
      softmax_statistics(image.logits + q * image.classes, image.classes, of.largest[q],
                         of.inverse[q]);
    }
  }
  for (int64_t t = 0; t < image.targets; ++t) {
    const T* b = image.target_boxes + 4 * t;
    const CostBox<T> target = cost_box(b[0], b[1], b[2], b[3]);
    const T* logits = image.logits + image.labels[t];
    T* row = cost + t * queries;
    for (int64_t q = 0; q < queries; ++q) row[q] = logits[q * image.classes];
    if (options.focal) {
      for (int64_t q = 0; q < queries; ++q) {
        row[q] = focal_term<HostMath<T>>(row[q], options.focal_parameters);
      }
    } else {
      for (int64_t q = 0; q < queries; ++q) {
        row[q] = -decay(row[q] - of.largest[q]) * of.inverse[q];
      }
    }
    for (int64_t q = 0; q < queries; ++q) {
      row[q] = matching_cost(of.box(q), target, row[q], options.weights);
    }
  }
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
