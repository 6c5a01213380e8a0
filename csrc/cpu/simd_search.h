// Searches over rows of numbers, at least a vector long; see simd.h.

#pragma once

#include "simd.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// Calls block(first, second, third, fourth) with the first columns of four vectors at a time, in
// ascending order, until they have covered [0, count), count >= kLanes; some columns may come
// twice. Stops where `block` returns true.
template <class T, class Block>
inline void for_each_block(int count, const Block& block) {
  constexpr int kLanes = Simd<T>::kLanes;
  int j = 0;
  for (; j + 4 * kLanes <= count; j += 4 * kLanes) {
    if (block(j, j + kLanes, j + 2 * kLanes, j + 3 * kLanes)) return;
  }
  if (j == count) return;
  // The rest as four vectors as well: the last 4 * kLanes columns, or fewer in overlapping vectors.
  if (count >= 4 * kLanes) j = count - 4 * kLanes;
  const int last = count - kLanes;
  const int stride = (last - j + 2) / 3;
  block(j, j + stride, j + 2 * stride < last ? j + 2 * stride : last, last);
}

// The lowest index with `value` among values(j), a vector of what is at j and behind; there is one.
template <class T, class Values>
inline int first_equal(int count, T value, const Values& values) {
  using V = Simd<T>;
  const auto wanted = V::broadcast(value);
  int column = 0;
  for_each_block<T>(count, [&](int j0, int j1, int j2, int j3) {
    const uint64_t bits0 = V::equal(values(j0), wanted), bits1 = V::equal(values(j1), wanted);
    const uint64_t bits2 = V::equal(values(j2), wanted), bits3 = V::equal(values(j3), wanted);
    if (!(bits0 | bits1 | bits2 | bits3)) return false;
    column = bits0   ? j0 + __builtin_ctzll(bits0)
             : bits1 ? j1 + __builtin_ctzll(bits1)
             : bits2 ? j2 + __builtin_ctzll(bits2)
                     : j3 + __builtin_ctzll(bits3);
    return true;
  });
  return column;
}

template <class T>
struct LowestTwo {
  T first, second;
  int index;  // of the first; no meaning where the second is equal to it
};

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

  LowestTwo<T> result() const {
    const T first = V::lowest(first_);
    const uint64_t lanes = V::equal(first_, V::broadcast(first));
    if (lanes & (lanes - 1)) return {first, first, 0};
    const int lane = __builtin_ctzll(lanes);
    return {first, V::lowest(V::select(lanes, second_, first_)), V::index(at_, lane) + lane};
  }

 private:
  typename V::Vector first_, second_;
  typename V::Indices at_;
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
