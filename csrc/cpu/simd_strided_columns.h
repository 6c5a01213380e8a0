// The columns of an assignment problem (see lap.h) whose rows do not lie contiguously. Where the
// columns do, the cheapest column of every row is found in the order of the memory, and the matrix
// is copied to dense rows only if two rows want the same column.

#pragma once

#include "simd_columns.h"
#include "simd_transpose.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Cost>
class StridedColumns : public SimdColumns<Cost> {
  using Base = SimdColumns<Cost>;
  using V = Simd<Cost>;

 public:
  static size_t bytes(int rows, int columns) {
    return bytes_of_state(rows, columns) + sizeof(Cost) * rows * dense_stride(columns);
  }

  // `storage` has bytes(rows, columns), aligned for double.
  StridedColumns(const CostMatrix<Cost>& cost, char* storage)
      : Base(reinterpret_cast<Cost*>(storage + bytes_of_state(cost.rows, cost.columns)),
             dense_stride(cost.columns), cost.rows, cost.columns, storage),
        from_(cost),
        dense_(reinterpret_cast<Cost*>(storage + bytes_of_state(cost.rows, cost.columns))) {}

  void begin() {
    Base::begin();
    minima_known_ = from_.row_stride == 1 && find_minima();
    if (!minima_known_) copy();
  }

  Nearest row_minimum(int row) {
    return minima_known_ ? Nearest{this->first_costs()[row], this->first_columns()[row]}
                         : Base::row_minimum(row);
  }

  void publish() {
    if (minima_known_ && this->unassigned() > 0) copy();
    Base::publish();
  }

 private:
  // The entries between dense rows: whole vectors, and an odd number of cache lines, or entries of
  // one column would share few places in the cache.
  static int64_t dense_stride(int columns) {
    constexpr int kLine = 64 / sizeof(Cost);
    return ((static_cast<int64_t>(columns) + kLine - 1) / kLine | 1) * kLine;
  }
  static size_t bytes_of_state(int rows, int columns) {
    return (Base::bytes(rows, columns) + 63) / 64 * 64;
  }

  void copy() {
    const int64_t stride = dense_stride(from_.columns);
    constexpr int kTile = V::kLanes;
    for (int j = 0; j < from_.columns; j += kTile) {
      const int count = from_.columns - j < kTile ? from_.columns - j : kTile;
      for (int i = 0; i < from_.rows; i += kTile) {
        const int length = from_.rows - i < kTile ? from_.rows - i : kTile;
        const Cost* corner = from_.data + i * from_.row_stride + j * from_.column_stride;
        Cost* to = dense_ + i * stride + j;
        if (from_.row_stride == 1) {
          // The columns after these lie on too many lines for the hardware to foresee: measured on
          // 64 problems of 100 x 900, a third of the time.
          for (int k = 0; k < kTile; ++k) {
            __builtin_prefetch(corner + (k + kTile) * from_.column_stride);
          }
          transpose_block(corner, from_.column_stride, count, length, to, stride);
          continue;
        }
        for (int k = 0; k < length; ++k) {
          for (int l = 0; l < count; ++l) {
            to[k * stride + l] = corner[k * from_.row_stride + l * from_.column_stride];
          }
        }
      }
    }
  }

  // The first choice of every row; false if a cost may be too large, infinite or NaN.
  bool find_minima() {
    auto sum = V::broadcast(0);
    for (int row = 0; row < from_.rows; row += 4 * V::kLanes) {
      const int vectors = (from_.rows - row + V::kLanes - 1) / V::kLanes;
      sum = V::add(sum, vectors == 1   ? find_minima_of<1>(row)
                        : vectors == 2 ? find_minima_of<2>(row)
                        : vectors == 3 ? find_minima_of<3>(row)
                                       : find_minima_of<4>(row));
    }
    return all_fit<Cost>(sum);
  }

  // Of the rows in so many vectors from `first`; returns the sum of the magnitudes of their costs.
  // One comparison would wait for the one before it: of few rows several columns are taken at once.
  template <int kVectors>
  typename V::Vector find_minima_of(int first) {
    constexpr int kLanes = V::kLanes, kAtOnce = 4 / kVectors;
    const int left = from_.rows - first;
    const int in_last = left < kVectors * kLanes ? left - (kVectors - 1) * kLanes : kLanes;
    const Cost* data = from_.data + first;
    const int64_t stride = from_.column_stride;
    LowestInLanes<Cost> lowest0, lowest1, lowest2, lowest3;
    const auto take = [=](LowestInLanes<Cost>& lowest, int place, int column) {
      const int vector = place % kVectors, j = column + place / kVectors;
      const Cost* c = data + j * stride + vector * kLanes;
      __builtin_prefetch(c + kAhead * stride);
      lowest.take(vector < kVectors - 1 ? V::load(c) : V::load_first(in_last, c), j);
    };
    int j = 0;
    for (; j + kAtOnce <= from_.columns; j += kAtOnce) {
      take(lowest0, 0, j);
      take(lowest1, 1, j);
      take(lowest2, 2, j);
      if (kVectors != 3) take(lowest3, 3, j);
    }
    for (; j < from_.columns; ++j) {
      take(lowest0, 0, j);
      if (kVectors == 2) take(lowest1, 1, j);
    }
    if (kVectors == 1) {
      lowest0.join(lowest1);
      lowest2.join(lowest3);
    }
    if (kVectors <= 2) {
      lowest0.join(lowest2);
      lowest1.join(lowest3);
    }
    Cost* costs = this->first_costs() + first;
    int* columns = this->first_columns() + first;
    lowest0.store(costs, columns);
    if (kVectors >= 2) lowest1.store(costs + kLanes, columns + kLanes);
    if (kVectors >= 3) lowest2.store(costs + 2 * kLanes, columns + 2 * kLanes);
    if (kVectors >= 4) lowest3.store(costs + 3 * kLanes, columns + 3 * kLanes);
    return V::add(V::add(lowest0.sum(), lowest1.sum()), V::add(lowest2.sum(), lowest3.sum()));
  }

  // Columns asked for ahead: a tenth less time for 30 x 900 and 100 x 900, of which 64 problems do
  // not stay in the cache; a twentieth more for 7 x 900.
  static constexpr int kAhead = 16;

  CostMatrix<Cost> from_;
  Cost* dense_;
  bool minima_known_ = false;
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
