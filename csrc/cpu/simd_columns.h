// The columns of an assignment problem (see lap.h) for one thread with SIMD, as an exact sieve.
//
// A path only needs the columns nearer than the nearest free column found so far. v <= 0 is 0 on
// free columns, so that column is known from a row after one pass, and a second pass in the
// precision of the costs sieves out what could be nearer: c - v <= bound - base, with every rounding
// against it. The few columns that pass are looked at in float64, exactly as LaneColumns looks at
// all of them, so both give the same assignment. Open columns wait in a heap.

#pragma once

#include "../lap.h"
#include "simd.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// Sums of costs below this neither overflow in Cost nor lose the sieve's margin.
template <class Cost>
constexpr double kLargestCost = sizeof(Cost) == 4 ? 0x1p100 : 0x1p900;

template <class Cost>
class SimdColumns {
  using V = Simd<Cost>;

 public:
  static size_t bytes(int rows, int columns) {
    return static_cast<size_t>(columns) * (2 * sizeof(double) + 2 * sizeof(Cost) + 3 * sizeof(int)) +
           static_cast<size_t>(rows) * 3 * sizeof(int);
  }

  // Row i is at cost + i * row_stride; `storage` has bytes(rows, columns), aligned for double.
  SimdColumns(const Cost* cost, int64_t row_stride, int rows, int columns, void* storage)
      : cost_(cost), row_stride_(row_stride), rows_(rows), columns_(columns) {
    v_ = static_cast<double*>(storage);
    distance_ = v_ + columns;
    sieve_ = reinterpret_cast<Cost*>(distance_ + columns);
    taken_ = sieve_ + columns;
    row_of_ = reinterpret_cast<int*>(taken_ + columns);
    predecessor_ = row_of_ + columns;
    place_ = predecessor_ + columns;
    column_of_ = place_ + columns;
    heap_ = column_of_ + rows;
    reached_ = heap_ + rows;
  }

  int rows() const { return rows_; }
  int column_of(int row) const { return column_of_[row]; }
  int row_of(int column) const { return row_of_[column]; }
  bool in_range() const { return in_range_; }

  void begin() {
    std::memset(row_of_, -1, columns_ * sizeof(int));
    std::memset(column_of_, -1, rows_ * sizeof(int));
    in_range_ = true;
    unassigned_ = rows_;
  }

  Nearest row_minimum(int row) {
    const Cost* c = row_of_costs(row);
    if (columns_ < V::kLanes) return row_minimum_with_care(c);
    typename V::Vector low0 = V::load(c), low1 = low0, low2 = low0, low3 = low0;
    typename V::Vector sum0 = V::broadcast(0), sum1 = sum0, sum2 = sum0, sum3 = sum0;
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
    const Cost low = lowest(V::min(V::min(low0, low1), V::min(low2, low3)));
    return {low, first_equal(c, nullptr, low)};
  }

  void claim(int row, int column) {
    if (row_of_[column] >= 0) return;
    row_of_[column] = row;
    column_of_[row] = column;
    --unassigned_;
  }

  void publish() {
    if (unassigned_ == 0) return;
    for (int j = 0; j < columns_; ++j) v_[j] = 0;
    for (int j = 0; j < columns_; ++j) distance_[j] = kInfinity;
    for (int j = 0; j < columns_; ++j) sieve_[j] = 0;
    for (int j = 0; j < columns_; ++j) taken_[j] = row_of_[j] < 0 ? 0 : kInfinite;
    begin_search();
  }

  Nearest relax(int row, double base) {
    const Cost* c = row_of_costs(row);
    if (!searching_) {
      searching_ = true;
      nearest_free_ = cheapest_free(c);
      if (nearest_free_.value < kInfinity) predecessor_[nearest_free_.column] = row;
    }
    sieve(c, row, base);
    if (open_ > 0 && distance_[heap_[0]] < nearest_free_.value) {
      return {distance_[heap_[0]], heap_[0]};
    }
    return nearest_free_;
  }

  double settle(const Nearest& nearest) {
    const int j = nearest.column;
    drop_nearest();
    sieve_[j] = -kInfinite;
    return nearest.value - (row_of_costs(row_of_[j])[j] - v_[j]);
  }

  void augment(int start, const Nearest& nearest) {
    for (int k = 0; k < count_reached_; ++k) {
      const int j = reached_[k];
      if (sieve_[j] == -kInfinite) {
        v_[j] -= nearest.value - distance_[j];
        sieve_[j] = rounded_up(v_[j]);
      }
      distance_[j] = kInfinity;
    }
    taken_[nearest.column] = kInfinite;
    int column = nearest.column, row;
    do {
      row = predecessor_[column];
      row_of_[column] = row;
      const int next = column_of_[row];
      column_of_[row] = column;
      column = next;
    } while (row != start);
    begin_search();
  }

 private:
  static constexpr Cost kInfinite = static_cast<Cost>(kInfinity);

  const Cost* row_of_costs(int row) const { return cost_ + row * row_stride_; }

  void begin_search() {
    searching_ = false;
    open_ = 0;
    count_reached_ = 0;
  }

  static Cost lowest(typename V::Vector a) {
    Cost lanes[V::kLanes];
    V::store(lanes, a);
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) {
        lanes[k] = lanes[k + half] < lanes[k] ? lanes[k + half] : lanes[k];
      }
    }
    return lanes[0];
  }

  static Cost total(typename V::Vector a) {
    Cost lanes[V::kLanes];
    V::store(lanes, a);
    for (int half = V::kLanes / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    }
    return lanes[0];
  }

  // The lowest column whose cost, plus `penalty` if there is one, is `value`; there is one.
  int first_equal(const Cost* c, const Cost* penalty, Cost value) const {
    const auto wanted = V::broadcast(value);
    const auto at = [&](int j) {
      return V::equal(penalty ? V::add(V::load(c + j), V::load(penalty + j)) : V::load(c + j),
                      wanted);
    };
    int column = 0;
    for_each_block<Cost>(columns_, [&](int j0, int j1, int j2, int j3) {
      const uint64_t bits0 = at(j0), bits1 = at(j1), bits2 = at(j2), bits3 = at(j3);
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
      in_range_ &= !(c[j] >= kLargestCost<Cost> && c[j] < kInfinite) && !(c[j] <= -kLargestCost<Cost>);
      if (c[j] < nearest.value) nearest = {c[j], j};
    }
    return valid ? nearest : Nearest{-kInfinity, columns_};
  }

  Nearest cheapest_free(const Cost* c) const {
    Nearest nearest{kInfinity, columns_};
    if (columns_ < V::kLanes) {
      for (int j = 0; j < columns_; ++j) {
        if (row_of_[j] < 0 && c[j] < nearest.value) nearest = {c[j], j};
      }
      return nearest;
    }
    auto low0 = V::broadcast(kInfinite), low1 = low0, low2 = low0, low3 = low0;
    for_each_block<Cost>(columns_, [&](int j0, int j1, int j2, int j3) {
      low0 = V::min(low0, V::add(V::load(c + j0), V::load(taken_ + j0)));
      low1 = V::min(low1, V::add(V::load(c + j1), V::load(taken_ + j1)));
      low2 = V::min(low2, V::add(V::load(c + j2), V::load(taken_ + j2)));
      low3 = V::min(low3, V::add(V::load(c + j3), V::load(taken_ + j3)));
      return false;
    });
    const Cost low = lowest(V::min(V::min(low0, low1), V::min(low2, low3)));
    if (low < kInfinite) nearest = {low, first_equal(c, taken_, low)};
    return nearest;
  }

  // Reaches columns through `row` that are nearer than what is known.
  void sieve(const Cost* c, int row, double base) {
    Cost limit = limit_for(base);
    if (columns_ < V::kLanes) {
      for (int j = 0; j < columns_; ++j) {
        if (c[j] - sieve_[j] <= limit && reach(c[j], j, row, base)) limit = limit_for(base);
      }
      return;
    }
    auto limits = V::broadcast(limit);
    const auto at = [&](int j) {
      return V::less_equal(V::sub(V::load(c + j), V::load(sieve_ + j)), limits);
    };
    for_each_block<Cost>(columns_, [&](int j0, int j1, int j2, int j3) {
      const uint64_t bits0 = at(j0), bits1 = at(j1), bits2 = at(j2), bits3 = at(j3);
      if (!(bits0 | bits1 | bits2 | bits3)) return false;
      const bool nearer = reach_all(c, bits0, j0, row, base) | reach_all(c, bits1, j1, row, base) |
                          reach_all(c, bits2, j2, row, base) | reach_all(c, bits3, j3, row, base);
      if (nearer) limits = V::broadcast(limit_for(base));
      return false;
    });
  }

  // Not below any c - v, rounded to Cost, of a column that `base` brings up to the nearest free one.
  Cost limit_for(double base) const {
    const double bound = nearest_free_.value;
    if (bound == kInfinity) return kInfinite;
    const double limit = bound - base;
    const double margin = sizeof(Cost) == 4 ? 0x1p-21 : 0x1p-50;
    return static_cast<Cost>(limit + __builtin_fabs(limit) * margin +
                             (__builtin_fabs(bound) + __builtin_fabs(base)) * 0x1p-50 +
                             kSmallestMargin);
  }

  bool reach_all(const Cost* c, uint64_t bits, int first, int row, double base) {
    bool nearer = false;
    for (; bits; bits &= bits - 1) {
      const int j = first + __builtin_ctzll(bits);
      nearer |= reach(c[j], j, row, base);
    }
    return nearer;
  }

  // True if column j is the new nearest free one.
  bool reach(Cost cost, int j, int row, double base) {
    const double through = (cost - v_[j]) + base;
    if (row_of_[j] < 0) {
      if (!(through < nearest_free_.value ||
            (through == nearest_free_.value && j < nearest_free_.column))) {
        return false;
      }
      nearest_free_ = {through, j};
      predecessor_[j] = row;
      return true;
    }
    // A settled column passes the sieve only while no free one is known.
    if (through < nearest_free_.value && through < distance_[j] && sieve_[j] != -kInfinite) {
      if (distance_[j] == kInfinity) {
        reached_[count_reached_++] = j;
        place_[j] = open_++;
      }
      distance_[j] = through;
      predecessor_[j] = row;
      rise(place_[j], j);
    }
    return false;
  }

  bool before(int a, int b) const {
    return distance_[a] < distance_[b] || (distance_[a] == distance_[b] && a < b);
  }

  void put(int place, int column) {
    heap_[place] = column;
    place_[column] = place;
  }

  void rise(int place, int column) {
    for (; place > 0 && before(column, heap_[(place - 1) / 2]); place = (place - 1) / 2) {
      put(place, heap_[(place - 1) / 2]);
    }
    put(place, column);
  }

  void drop_nearest() {
    const int last = heap_[--open_];
    int place = 0;
    for (int child = 1; child < open_; child = 2 * place + 1) {
      if (child + 1 < open_ && before(heap_[child + 1], heap_[child])) ++child;
      if (!before(heap_[child], last)) break;
      put(place, heap_[child]);
      place = child;
    }
    put(place, last);
  }

  static Cost rounded_up(double v) {
    if (sizeof(Cost) == 8) return static_cast<Cost>(v);
    return static_cast<Cost>(v + __builtin_fabs(v) * 0x1p-23 + kSmallestMargin);
  }

  // Above half the distance of the smallest denormals of Cost.
  static constexpr double kSmallestMargin = sizeof(Cost) == 4 ? 1e-45 : 5e-324;

  const Cost* cost_;
  int64_t row_stride_;
  int rows_;
  int columns_;
  double* v_;         // [columns]
  double* distance_;  // [columns] +inf unless an assigned column has been reached
  Cost* sieve_;       // [columns] v rounded up to Cost; -inf once settled
  Cost* taken_;       // [columns] 0 on free columns, else +inf
  int* row_of_;       // [columns]
  int* predecessor_;  // [columns]
  int* place_;        // [columns] in the heap
  int* column_of_;    // [rows]
  int* heap_;         // [rows] assigned columns reached and not settled, nearest first
  int* reached_;      // [rows]
  Nearest nearest_free_{kInfinity, 0};
  int unassigned_ = 0;
  int open_ = 0;
  int count_reached_ = 0;
  bool searching_ = false;
  bool in_range_ = true;
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
