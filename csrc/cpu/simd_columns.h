// The columns of an assignment problem (see lap.h) for one thread with SIMD: rows of costs are
// streamed, in their own precision for row minima and bids, in float64 for paths. The same numbers
// are computed and compared as in LaneColumns, so both give the same assignment.

#pragma once

#include "../lap.h"
#include "simd.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Cost>
class SimdColumns {
  using V = Simd<Cost>;
  using D = Simd<double>;
  using Vector = typename V::Vector;

 public:
  static size_t bytes(int rows, int columns) {
    return static_cast<size_t>(columns) * (2 * sizeof(double) + sizeof(Cost) + 2 * sizeof(int)) +
           static_cast<size_t>(rows) * (sizeof(Settled) + sizeof(int));
  }

  // Row i is at cost + i * row_stride; `storage` has bytes(rows, columns), aligned for double.
  SimdColumns(const Cost* cost, int64_t row_stride, int rows, int columns, void* storage)
      : cost_(cost), row_stride_(row_stride), rows_(rows), columns_(columns) {
    settled_ = static_cast<Settled*>(storage);
    v_ = reinterpret_cast<double*>(settled_ + rows);
    distance_ = v_ + columns;
    price_ = reinterpret_cast<Cost*>(distance_ + columns);
    row_of_ = reinterpret_cast<int*>(price_ + columns);
    predecessor_ = row_of_ + columns;
    column_of_ = predecessor_ + columns;
  }

  int rows() const { return rows_; }
  int column_of(int row) const { return column_of_[row]; }
  int row_of(int column) const { return row_of_[column]; }
  bool may_bid() const { return may_bid_; }

  void begin() {
    std::memset(row_of_, -1, columns_ * sizeof(int));
    std::memset(column_of_, -1, rows_ * sizeof(int));
    may_bid_ = true;
    unassigned_ = rows_;
  }

  Nearest row_minimum(int row) {
    const Cost* c = row_of_costs(row);
    if (columns_ < V::kLanes) return row_minimum_with_care(c);
    Vector low0 = V::load(c), low1 = low0, low2 = low0, low3 = low0;
    Vector sum0 = V::broadcast(0), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    for_each_block<Cost>(columns_, [&](int j0, int j1, int j2, int j3) {
      const auto c0 = V::load(c + j0), c1 = V::load(c + j1);
      const auto c2 = V::load(c + j2), c3 = V::load(c + j3);
      low0 = V::min(low0, c0);
      low1 = V::min(low1, c1);
      low2 = V::min(low2, c2);
      low3 = V::min(low3, c3);
      sum0 = V::add(sum0, V::abs(c0));
      sum1 = V::add(sum1, V::abs(c1));
      sum2 = V::add(sum2, V::abs(c2));
      sum3 = V::add(sum3, V::abs(c3));
      return false;
    });
    // Not smaller than the largest magnitude; NaN and infinite entries are in it too.
    const Cost sum = total(V::add(V::add(sum0, sum1), V::add(sum2, sum3)));
    if (!(sum < kLargestCost<Cost>)) return row_minimum_with_care(c);
    const Cost low = V::lowest(V::min(V::min(low0, low1), V::min(low2, low3)));
    return {low, first_equal(low, [&](int j) { return V::load(c + j); })};
  }

  void claim(int row, int column) {
    if (row_of_[column] >= 0) return;
    row_of_[column] = row;
    column_of_[row] = column;
    --unassigned_;
  }

  void publish() {
    if (unassigned_ > 0) std::fill_n(price_, columns_, Cost{0});
  }

  int bid(int row) {
    const Cost* c = row_of_costs(row);
    const Pair lowest = columns_ < V::kLanes ? two_lowest_with_care(c) : two_lowest(c);
    if (!(lowest.first < lowest.second) || lowest.second == kInfinite) return -1;
    const int j = column_with(lowest.first, c);
    const Cost price = price_after_bid(c[j], lowest.second);
    if (!(price < price_[j])) return -1;
    price_[j] = price;
    const int loser = row_of_[j];
    if (loser >= 0) {
      column_of_[loser] = -1;
    } else {
      --unassigned_;
    }
    row_of_[j] = row;
    column_of_[row] = j;
    return loser;
  }

  void begin_paths() {
    if (unassigned_ == 0) return;
    for (int j = 0; j < columns_; ++j) v_[j] = price_[j];
    begin_path();
  }

  Nearest relax(int row, double base) {
    const Cost* c = row_of_costs(row);
    if (columns_ < D::kLanes) return relax_with_care(c, row, base);
    const auto bases = D::broadcast(base);
    auto low0 = D::broadcast(kInfinity), low1 = low0, low2 = low0, low3 = low0;
    const double* v = v_;
    double* distance = distance_;
    int* predecessor = predecessor_;
    const auto scale = D::broadcast(may_bid_ ? 1 : kScaleBeyond<Cost>);
    const auto scaled = [=](typename D::Vector costs) {
      return kScaleBeyond<Cost> == 1 ? costs : D::mul(costs, scale);
    };
    const auto lower = [=](int j, typename D::Vector low) {
      const auto through = D::add(D::sub(scaled(D::load(c + j)), D::load(v + j)), bases);
      return D::min(low, D::lower(distance + j, through, predecessor + j, row));
    };
    for_each_block<double>(columns_, [&](int j0, int j1, int j2, int j3) {
      low0 = lower(j0, low0);
      low1 = lower(j1, low1);
      low2 = lower(j2, low2);
      low3 = lower(j3, low3);
      return false;
    });
    const double low = D::lowest(D::min(D::min(low0, low1), D::min(low2, low3)));
    return {low, low < kInfinity ? nearest_at(low) : columns_};
  }

  // Nothing lowers the distance of a settled column: seen from any row it is infinite.
  double settle(const Nearest& nearest) {
    const int j = nearest.column;
    const double v = v_[j];
    settled_[count_settled_++] = {nearest.value, v, j};
    v_[j] = -kInfinity;
    distance_[j] = kInfinity;
    return nearest.value - (scaled(row_of_costs(row_of_[j])[j]) - v);
  }

  void augment(int start, const Nearest& nearest) {
    for (int k = 0; k < count_settled_; ++k) {
      v_[settled_[k].column] = settled_[k].v - (nearest.value - settled_[k].distance);
    }
    int column = nearest.column, row;
    do {
      row = predecessor_[column];
      row_of_[column] = row;
      const int next = column_of_[row];
      column_of_[row] = column;
      column = next;
    } while (row != start);
    begin_path();
  }

 private:
  struct Settled {
    double distance, v;
    int column;
  };
  struct Pair {
    Cost first, second;
  };

  static constexpr Cost kInfinite = static_cast<Cost>(kInfinity);

  const Cost* row_of_costs(int row) const { return cost_ + row * row_stride_; }

  void begin_path() {
    count_settled_ = 0;
    std::fill_n(distance_, columns_, kInfinity);
  }

  static Cost total(Vector a) {
    Cost lanes[V::kLanes];
    V::store(lanes, a);
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    }
    return lanes[0];
  }

  double scaled(Cost c) const {
    return kScaleBeyond<Cost> == 1 || may_bid_ ? c : c * kScaleBeyond<Cost>;
  }

  // The lowest column where values(column, ...) have `value`; there is one.
  template <class Values>
  int first_equal(Cost value, const Values& values) const {
    const auto wanted = V::broadcast(value);
    int column = 0;
    for_each_block<Cost>(columns_, [&](int j0, int j1, int j2, int j3) {
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

  Nearest row_minimum_with_care(const Cost* c) {
    Nearest nearest{kInfinity, columns_};
    bool valid = true;
    for (int j = 0; j < columns_; ++j) {
      valid &= c[j] > -kInfinite;
      may_bid_ &= fits(c[j]);
      if (c[j] < nearest.value) nearest = {c[j], j};
    }
    return valid ? nearest : Nearest{-kInfinity, columns_};
  }

  // Reduced costs c - price, rounded to Cost.
  static Vector reduced(const Cost* c, const Cost* price, int j) {
    return V::sub(V::load(c + j), V::load(price + j));
  }

  // The two lowest of a row; equal where the lowest occurs twice.
  Pair two_lowest(const Cost* c) const {
    auto low0 = V::broadcast(kInfinite), low1 = low0, low2 = low0, low3 = low0;
    auto next0 = low0, next1 = low0, next2 = low0, next3 = low0;
    const auto take = [](Vector s, Vector& low, Vector& next) {
      next = V::min(next, V::max(low, s));
      low = V::min(low, s);
    };
    const auto join = [](Vector& low, Vector& next, Vector other_low, Vector other_next) {
      next = V::min(V::min(next, other_next), V::max(low, other_low));
      low = V::min(low, other_low);
    };
    constexpr int kLanes = V::kLanes;
    const Cost* price = price_;
    int j = 0;
    for (; j + 4 * kLanes <= columns_; j += 4 * kLanes) {
      take(reduced(c, price, j), low0, next0);
      take(reduced(c, price, j + kLanes), low1, next1);
      take(reduced(c, price, j + 2 * kLanes), low2, next2);
      take(reduced(c, price, j + 3 * kLanes), low3, next3);
    }
    for (; j + kLanes <= columns_; j += kLanes) take(reduced(c, price, j), low0, next0);
    if (j < columns_) {
      // No column may come twice: those before j get an infinite summand.
      const Cost* summands = kTail.values + columns_ - j;
      take(V::add(reduced(c, price, columns_ - kLanes), V::load(summands)), low1, next1);
    }
    join(low0, next0, low1, next1);
    join(low2, next2, low3, next3);
    join(low0, next0, low2, next2);
    const Cost lowest = V::lowest(low0);
    const uint64_t where = V::equal(low0, V::broadcast(lowest));
    if (where & (where - 1)) return {lowest, lowest};
    return {lowest, V::lowest(V::select(where, next0, low0))};
  }

  Pair two_lowest_with_care(const Cost* c) const {
    Pair lowest{kInfinite, kInfinite};
    for (int j = 0; j < columns_; ++j) {
      const Cost s = c[j] - price_[j];
      if (s < lowest.first) {
        lowest = {s, lowest.first};
      } else if (s < lowest.second) {
        lowest.second = s;
      }
    }
    return lowest;
  }

  // The lowest column with that reduced cost; there is one.
  int column_with(Cost value, const Cost* c) const {
    if (columns_ >= V::kLanes) {
      return first_equal(value, [c, price = price_](int j) { return reduced(c, price, j); });
    }
    int j = 0;
    while (c[j] - price_[j] != value) ++j;
    return j;
  }

  Nearest relax_with_care(const Cost* c, int row, double base) {
    double low = kInfinity;
    for (int j = 0; j < columns_; ++j) {
      const double through = (scaled(c[j]) - v_[j]) + base;
      if (through < distance_[j]) {
        distance_[j] = through;
        predecessor_[j] = row;
      }
      if (distance_[j] < low) low = distance_[j];
    }
    if (low == kInfinity) return {low, columns_};
    int column = -1;
    for (int j = 0; j < columns_; ++j) {
      if (distance_[j] == low && (column < 0 || (row_of_[j] < 0 && row_of_[column] >= 0))) {
        column = j;
      }
    }
    return {low, column};
  }

  // The first free column at that distance, or if there is none the first one; there is one.
  int nearest_at(double distance) const {
    const auto wanted = D::broadcast(distance);
    int first = columns_, first_free = columns_;
    const auto look = [&](uint64_t bits, int j) {
      for (; bits && first_free == columns_; bits &= bits - 1) {
        const int column = j + __builtin_ctzll(bits);
        if (first == columns_) first = column;
        if (row_of_[column] < 0) first_free = column;
      }
    };
    for_each_block<double>(columns_, [&](int j0, int j1, int j2, int j3) {
      const uint64_t bits0 = D::equal(D::load(distance_ + j0), wanted);
      const uint64_t bits1 = D::equal(D::load(distance_ + j1), wanted);
      const uint64_t bits2 = D::equal(D::load(distance_ + j2), wanted);
      const uint64_t bits3 = D::equal(D::load(distance_ + j3), wanted);
      if (!(bits0 | bits1 | bits2 | bits3)) return false;
      look(bits0, j0);
      look(bits1, j1);
      look(bits2, j2);
      look(bits3, j3);
      return first_free < columns_;
    });
    return first_free < columns_ ? first_free : first;
  }

  // kLanes times infinity and then kLanes times zero.
  struct Tail {
    constexpr Tail() : values() {
      for (int k = 0; k < V::kLanes; ++k) values[k] = kInfinite;
    }
    Cost values[2 * V::kLanes];
  };
  static constexpr Tail kTail{};

  const Cost* cost_;
  int64_t row_stride_;
  int rows_;
  int columns_;
  Settled* settled_;  // [rows]
  double* v_;         // [columns] -inf once settled
  double* distance_;  // [columns] +inf once settled
  Cost* price_;       // [columns] v while rows bid
  int* row_of_;       // [columns]
  int* predecessor_;  // [columns]
  int* column_of_;    // [rows]
  int unassigned_ = 0;
  int count_settled_ = 0;
  bool may_bid_ = true;
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
