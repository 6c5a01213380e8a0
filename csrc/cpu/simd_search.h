// Searches over rows of numbers, at least a vector long; see simd.h.

#pragma once

#include <limits>

#include "../lap.h"
#include "simd.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// Calls block(first, second, third, fourth) with the first columns of four vectors at a time, in
// ascending order, until they have covered [0, count), count >= kLanes; some columns may come
// twice.
template <class T, class Block>
inline void for_each_block(int count, const Block& block) {
  constexpr int kLanes = Simd<T>::kLanes;
  int j = 0;
  for (; j + 4 * kLanes <= count; j += 4 * kLanes) {
    block(j, j + kLanes, j + 2 * kLanes, j + 3 * kLanes);
  }
  if (j == count) return;
  // The rest as four vectors as well: the last 4 * kLanes columns, or fewer in overlapping vectors.
  if (count >= 4 * kLanes) j = count - 4 * kLanes;
  const int last = count - kLanes;
  const int stride = (last - j + 2) / 3;
  block(j, j + stride, j + 2 * stride < last ? j + 2 * stride : last, last);
}

// For each lane the lowest of what it took, the first among equals, and where that was.
template <class T>
class LowestInLanes {
  using V = Simd<T>;

 public:
  // Written out for the reason given at LowestTwoInLanes.
  LowestInLanes()
      : low_(V::broadcast(static_cast<T>(kInfinity))), sum_(V::broadcast(0)), at_(V::indices(0)) {}

  // In ascending order of j.
  void take(typename V::Vector a, int j) {
    V::track(low_, at_, a, V::indices(j));
    sum_ = V::add(sum_, V::abs(a));
  }

  void join(const LowestInLanes& other) {
    V::track_first(low_, at_, other.low_, other.at_);
    sum_ = V::add(sum_, other.sum_);
  }

  // A vector of each.
  void store(T* lowest, int* at) const {
    V::store(lowest, low_);
    V::store_indices(at, at_);
  }

  // Of the magnitudes that each lane took.
  typename V::Vector sum() const { return sum_; }

  // The lowest of all lanes of four, and the first column with it; lane k of what was taken at j
  // stands for column j + k.
  static Nearest lowest_of(const LowestInLanes& a, const LowestInLanes& b, const LowestInLanes& c,
                           const LowestInLanes& d) {
    constexpr int kLanes = V::kLanes;
    int at[4 * kLanes];
    V::store_indices(at, a.at_);
    V::store_indices(at + kLanes, b.at_);
    V::store_indices(at + 2 * kLanes, c.at_);
    V::store_indices(at + 3 * kLanes, d.at_);
    const T low = V::lowest(V::min(V::min(a.low_, b.low_), V::min(c.low_, d.low_)));
    const auto wanted = V::broadcast(low);
    uint64_t bits = V::equal(a.low_, wanted) | V::equal(b.low_, wanted) << kLanes |
                    V::equal(c.low_, wanted) << 2 * kLanes | V::equal(d.low_, wanted) << 3 * kLanes;
    int column = std::numeric_limits<int>::max();
    do {
      const int bit = __builtin_ctzll(bits);
      const int here = at[bit] + bit % kLanes;
      column = here < column ? here : column;
    } while (bits &= bits - 1);
    return {low, column};
  }

 private:
  typename V::Vector low_, sum_;
  typename V::Indices at_;
};

// Whether what has these sums of magnitudes in the lanes is all below kLargestCost; false for NaN.
template <class T>
inline bool all_fit(typename Simd<T>::Vector sums) {
  const auto largest = Simd<T>::broadcast(static_cast<T>(kLargestCost<T>));
  return Simd<T>::equal(Simd<T>::min(sums, largest), largest) == 0;
}

// For each lane the lowest two of what it took, and where the lowest was.
template <class T>
class LowestTwoInLanes {
  using V = Simd<T>;

 public:
  // Written out: GCC compiles an implicit one without the instruction set that a pragma has chosen.
  LowestTwoInLanes()
      : first_(V::broadcast(static_cast<T>(kInfinity))), second_(first_), at_(V::indices(0)) {}

  void take(typename V::Vector a, int j) {
    second_ = V::min(second_, V::max(first_, a));
    V::track(first_, at_, a, V::indices(j));
  }

  void join(const LowestTwoInLanes& other) {
    second_ = V::min(V::min(second_, other.second_), V::max(first_, other.first_));
    V::track(first_, at_, other.first_, other.at_);
  }

  // Of all lanes.
  LowestTwo<T> lowest() const { return V::lowest_two(first_, second_); }

  // Where `first`, the lowest of all lanes, is, if it is the only one; lane k of what was taken at
  // j stands for column j + k.
  int column_of(T first) const {
    int at[V::kLanes];
    V::store_indices(at, at_);
    const int lane = __builtin_ctzll(V::equal(first_, V::broadcast(first)));
    return at[lane] + lane;
  }

 private:
  typename V::Vector first_, second_;
  typename V::Indices at_;
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
