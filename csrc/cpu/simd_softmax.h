// What softmax needs of the logits of a query, for a block of queries; see kSoftmaxParts in
// matching_cost.h.

#pragma once

#include <cstdint>

#include "simd_transpose.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

inline Simd<float>::Vector exponentials(Simd<float>::Vector logits, Simd<float>::Vector top) {
  return exp_of_difference<Simd<float>>(logits, top);
}

inline Simd<double>::Vector exponentials(Simd<double>::Vector logits, Simd<double>::Vector top) {
  constexpr int kLanes = Simd<double>::kLanes;
  double values[kLanes], tops[kLanes];
  Simd<double>::store(values, logits);
  Simd<double>::store(tops, top);
  for (int k = 0; k < kLanes; ++k) values[k] = exp_of_difference(values[k], tops[k]);
  return Simd<double>::load(values);
}

// The parts of kLanes queries, in vectors of which each has some parts of one query.
template <class T>
class SoftmaxParts {
  using V = Simd<T>;
  using Vector = typename V::Vector;

 public:
  static constexpr int kLanes = V::kLanes, kVectors = kSoftmaxParts / kLanes;

  Vector& at(int query, int vector) { return parts_[vector][query]; }

  // In lane k what is joined of the parts of query k: part p + h with part p for h = 8, 4, 2, 1.
  template <class Join>
  Vector joined(const Join& join) {
    for (auto& of_queries : parts_) transpose(of_queries);
    const auto part = [this](int p) -> Vector& { return parts_[p / kLanes][p % kLanes]; };
    for (int half = kSoftmaxParts / 2; half > 0; half /= 2) {
      for (int p = 0; p < half; ++p) part(p) = join(part(p), part(p + half));
    }
    return part(0);
  }

 private:
  Vector parts_[kVectors][kLanes];
};

// For `count` queries, at least 1 and at most kLanes, of `classes` logits each.
template <class T>
inline void softmax_statistics(const T* logits, int count, int64_t classes, T* largest,
                               T* inverse) {
  using V = Simd<T>;
  using Parts = SoftmaxParts<T>;
  constexpr int kLanes = V::kLanes, kVectors = Parts::kVectors;
  const int64_t even = classes / kSoftmaxParts * kSoftmaxParts;
  const int rest = static_cast<int>(classes - even), counted = kSoftmaxParts - rest;

  // The last kSoftmaxParts logits of each query, of which the first `counted` are among the even
  // ones. They count 0 times where a choice would be a branch: one that is NaN makes the sum NaN
  // anyway. Queries that are missing are the last one again.
  T times[kSoftmaxParts], few[kLanes][kSoftmaxParts];
  const T *own[kLanes], *last[kLanes];
  for (int k = 0; k < kSoftmaxParts; ++k) times[k] = k < counted ? 0 : 1;
  for (int q = 0; q < kLanes; ++q) {
    own[q] = logits + (q < count ? q : count - 1) * classes;
    last[q] = own[q] + classes - kSoftmaxParts;
    if (classes >= kSoftmaxParts) continue;
    for (int k = 0; k < kSoftmaxParts; ++k) few[q][k] = own[q][k < counted ? 0 : k - counted];
    last[q] = few[q];
  }

  Parts high;
  for (int q = 0; q < kLanes; ++q) {
    for (int v = 0; v < kVectors; ++v) {
      auto top = V::load(last[q] + v * kLanes);
      for (int64_t c = v * kLanes; c < even; c += kSoftmaxParts) {
        top = V::max(V::load(own[q] + c), top);
      }
      high.at(q, v) = top;
    }
  }
  T tops[kLanes], inverses[kLanes];
  V::store(tops, high.joined([](auto a, auto b) { return V::max(b, a); }));

  Parts sums;
  for (int q = 0; q < kLanes; ++q) {
    // The next block is read while this one is computed.
    const T* ahead = own[q] + kLanes * classes;
    for (int64_t c = 0; c < classes; c += 64 / sizeof(T)) __builtin_prefetch(ahead + c);
    const auto top = V::broadcast(tops[q]);
    for (int v = 0; v < kVectors; ++v) {
      auto sum = V::broadcast(0);
      for (int64_t c = v * kLanes; c < even; c += kSoftmaxParts) {
        sum = V::add(sum, exponentials(V::load(own[q] + c), top));
      }
      sums.at(q, v) = V::add(sum, V::mul(exponentials(V::load(last[q] + v * kLanes), top),
                                         V::load(times + v * kLanes)));
    }
  }
  V::store(inverses, V::div(V::broadcast(1), sums.joined(V::add)));
  for (int q = 0; q < count; ++q) {
    largest[q] = tops[q];
    inverse[q] = inverses[q];
  }
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
