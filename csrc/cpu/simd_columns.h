// The columns of an assignment problem (see lap.h) for one thread with SIMD: rows of costs are
// streamed, in their own precision for row minima and bids, in float64 for paths. The same numbers
// are computed and compared as in LaneColumns, so both give the same assignment.

#pragma once

#include <algorithm>

#include "../lap.h"
#include "simd_search.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Cost>
class SimdColumns {
  using V = Simd<Cost>;
  using D = Simd<double>;
  using Vector = typename V::Vector;

 public:
  static size_t bytes(int rows, int columns) {
    const size_t of_padded = 2 * sizeof(double) + sizeof(Cost) + sizeof(int);
    return of_padded * padded(columns) + sizeof(uint64_t) * words(columns) + sizeof(int) * columns +
           (sizeof(Settled) + sizeof(int)) * rows;
  }

  // Row i is at cost + i * row_stride; `storage` has bytes(rows, columns), aligned for double.
  SimdColumns(const Cost* cost, int64_t row_stride, int rows, int columns, void* storage)
      : cost_(cost), row_stride_(row_stride), rows_(rows), columns_(columns) {
    v_ = static_cast<double*>(storage);
    distance_ = v_ + padded(columns);
    settled_ = reinterpret_cast<Settled*>(distance_ + padded(columns));
    taken_ = reinterpret_cast<uint64_t*>(settled_ + rows);
    price_ = reinterpret_cast<Cost*>(taken_ + words(columns));
    predecessor_ = reinterpret_cast<int*>(price_ + padded(columns));
    row_of_ = predecessor_ + padded(columns);
    column_of_ = row_of_ + columns;
  }

  int rows() const { return rows_; }
  int columns() const { return columns_; }
  int column_of(int row) const { return column_of_[row]; }
  int row_of(int column) const { return row_of_[column]; }
  bool may_bid() const { return may_bid_; }
  double v(int column) const {
    if (stage_ == Stage::kClaims) return 0;
    return stage_ == Stage::kBids ? price_[column] : v_[column] / scale_;
  }

  void begin() {
    std::memset(row_of_, -1, columns_ * sizeof(int));
    std::memset(column_of_, -1, rows_ * sizeof(int));
    std::fill_n(taken_, words(columns_), uint64_t{0});
    may_bid_ = true;
    unassigned_ = rows_;
    stage_ = Stage::kClaims;
  }

  Nearest row_minimum(int row) {
    const Cost* c = row_of_costs(row);
    if (columns_ < V::kLanes) return row_minimum_with_care(c);
    LowestInLanes<Cost> lowest0, lowest1, lowest2, lowest3;
    // Where costs come from memory this saves a fifth of the time, elsewhere a twentieth.
    const bool prefetch = columns_ >= kFewestPrefetched;
    const Cost* next = c + row_stride_;
    for_each_block<Cost>(columns_, [&](int j0, int j1, int j2, int j3) {
      if (prefetch) {
        for (const int j : {j0, j1, j2, j3}) __builtin_prefetch(next + j);
      }
      lowest0.take(V::load(c + j0), j0);
      lowest1.take(V::load(c + j1), j1);
      lowest2.take(V::load(c + j2), j2);
      lowest3.take(V::load(c + j3), j3);
    });
    const auto sum = V::add(V::add(lowest0.sum(), lowest1.sum()),
                            V::add(lowest2.sum(), lowest3.sum()));
    if (!all_fit<Cost>(sum)) return row_minimum_with_care(c);
    return LowestInLanes<Cost>::lowest_of(lowest0, lowest1, lowest2, lowest3);
  }

  void claim(int row, int column) {
    if (row_of_[column] >= 0) return;
    row_of_[column] = row;
    column_of_[row] = column;
    take(column);
    --unassigned_;
  }

  void publish() {
    if (unassigned_ == 0) return;
    stage_ = Stage::kBids;
    std::fill_n(price_, columns_, Cost{0});
    std::fill(price_ + columns_, price_ + padded(columns_), -kInfinite);
  }

  int waiting(int place) const { return predecessor_[place]; }

  bool bid(int row, int place) {
    const Cost* c = row_of_costs(row);
    const LowestTwoInLanes<Cost> reduced = lowest_reduced(c);
    const auto [first, second] = reduced.lowest();
    if (!(first < second) || second == kInfinite) return false;
    const int j = reduced.column_of(first);
    const Cost price = price_after_bid(c[j], second);
    if (!(price < price_[j])) return false;
    price_[j] = price;
    const int loser = row_of_[j];
    row_of_[j] = row;
    column_of_[row] = j;
    if (loser < 0) {
      take(j);
      --unassigned_;
      return false;
    }
    column_of_[loser] = -1;
    predecessor_[place] = loser;
    return true;
  }

  void begin_paths() {
    if (unassigned_ == 0) return;
    stage_ = Stage::kPaths;
    for (int j = 0; j < padded(columns_); ++j) v_[j] = price_[j];
    std::fill(distance_ + columns_, distance_ + padded(columns_), kInfinity);
    scale_ = may_bid_ ? 1 : kScaleBeyond<Cost>;
    count_settled_ = 0;
  }

  Nearest relax(int row, double base) {
    const double* v = v_;
    double* distance = distance_;
    int* predecessor = predecessor_;
    const auto scale = D::broadcast(scale_);
    const auto reduced = [=](int j, typename D::Vector costs) {
      return D::sub(kScaleBeyond<Cost> == 1 ? costs : D::mul(costs, scale), D::load(v + j));
    };
    double low;
    if (count_settled_ == 0) {  // nothing has been reached
      std::fill_n(predecessor, columns_, row);
      low = lowest_of_all(row, [=](int j, typename D::Vector costs) {
        const auto through = reduced(j, costs);
        D::store(distance + j, through);
        return through;
      });
    } else {
      const auto bases = D::broadcast(base);
      low = lowest_of_all(row, [=](int j, typename D::Vector costs) {
        return D::lower(distance + j, D::add(reduced(j, costs), bases), predecessor + j, row);
      });
    }
    return {low, low < kInfinity ? nearest_at(low) : columns_};
  }

  // Nothing lowers the distance of a settled column: seen from any row it is infinite.
  double settle(const Nearest& nearest) {
    const int j = nearest.column;
    const double v = v_[j];
    settled_[count_settled_++] = {nearest.value, v, j};
    v_[j] = -kInfinity;
    distance_[j] = kInfinity;
    return nearest.value - (on_paths(row_of_costs(row_of_[j])[j]) - v);
  }

  void augment(int start, const Nearest& nearest) {
    for (int k = 0; k < count_settled_; ++k) {
      v_[settled_[k].column] = settled_[k].v - (nearest.value - settled_[k].distance);
    }
    take(nearest.column);
    int column = nearest.column, row;
    do {
      row = predecessor_[column];
      row_of_[column] = row;
      const int next = column_of_[row];
      column_of_[row] = column;
      column = next;
    } while (row != start);
    count_settled_ = 0;
  }

 protected:
  int unassigned() const { return unassigned_; }

  // Before there are bids, room for the cheapest column of each row and more: for whole vectors.
  Cost* first_costs() { return price_; }
  int* first_columns() { return predecessor_; }

 private:
  enum class Stage { kClaims, kBids, kPaths };  // where v is: nowhere yet, in price_, in v_
  struct Settled {
    double distance, v;
    int column;
  };

  static constexpr Cost kInfinite = static_cast<Cost>(kInfinity);
  // Shorter rows are in a cache anyway, and asking again would take 2 % of the time.
  static constexpr int kFewestPrefetched = 256;

  // Arrays over columns end with a whole word of bits; behind the last column v and the price are
  // -inf, so that nothing there is near.
  static int padded(int columns) {
    return words(columns) * 64;
  }
  static int words(int columns) { return (columns + 63) / 64; }

  const Cost* row_of_costs(int row) const { return cost_ + row * row_stride_; }

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

  // Of the reduced costs c - price, rounded to Cost.
  LowestTwoInLanes<Cost> lowest_reduced(const Cost* c) const {
    constexpr int kLanes = V::kLanes;
    const Cost* price = price_;
    const auto at = [=](int j) { return V::sub(V::load(c + j), V::load(price + j)); };
    LowestTwoInLanes<Cost> lanes0, lanes1, lanes2, lanes3;
    int j = 0;
    for (; j + 4 * kLanes <= columns_; j += 4 * kLanes) {
      lanes0.take(at(j), j);
      lanes1.take(at(j + kLanes), j + kLanes);
      lanes2.take(at(j + 2 * kLanes), j + 2 * kLanes);
      lanes3.take(at(j + 3 * kLanes), j + 3 * kLanes);
    }
    for (; j + kLanes <= columns_; j += kLanes) lanes0.take(at(j), j);
    if (j < columns_) {
      lanes1.take(V::sub(V::load_first(columns_ - j, c + j), V::load(price + j)), j);
    }
    lanes0.join(lanes1);
    lanes2.join(lanes3);
    lanes0.join(lanes2);
    return lanes0;
  }

  void take(int column) { taken_[column / 64] |= uint64_t{1} << column % 64; }

  double on_paths(double c) const { return kScaleBeyond<Cost> == 1 ? c : c * scale_; }

  // The lowest of distances(first column, costs) over the vectors of a row.
  template <class Distances>
  double lowest_of_all(int row, const Distances& distances) const {
    const Cost* c = row_of_costs(row);
    auto low0 = D::broadcast(kInfinity), low1 = low0, low2 = low0, low3 = low0;
    constexpr int kLanes = D::kLanes;
    int j = 0;
    for (; j + 4 * kLanes <= columns_; j += 4 * kLanes) {
      low0 = D::min(low0, distances(j, D::load(c + j)));
      low1 = D::min(low1, distances(j + kLanes, D::load(c + j + kLanes)));
      low2 = D::min(low2, distances(j + 2 * kLanes, D::load(c + j + 2 * kLanes)));
      low3 = D::min(low3, distances(j + 3 * kLanes, D::load(c + j + 3 * kLanes)));
    }
    for (; j + kLanes <= columns_; j += kLanes) low0 = D::min(low0, distances(j, D::load(c + j)));
    if (j < columns_) low1 = D::min(low1, distances(j, D::load_first(columns_ - j, c + j)));
    return D::lowest(D::min(D::min(low0, low1), D::min(low2, low3)));
  }

  // The first free column at that distance, or if there is none the first one; there is one.
  // Without branches on where it is, which nothing could predict.
  int nearest_at(double distance) const {
    const auto wanted = D::broadcast(distance);
    const double* distances = distance_;
    int first = columns_;
    for (int j = 0; j < columns_; j += 64) {
      uint64_t bits = 0;
      for (int k = 0; k < 64; k += D::kLanes) {
        bits |= D::equal(D::load(distances + j + k), wanted) << k;
      }
      const uint64_t free = bits & ~taken_[j / 64];
      if (free) return j + __builtin_ctzll(free);
      const int here = bits ? j + __builtin_ctzll(bits) : columns_;
      first = here < first ? here : first;
    }
    return first;
  }

  const Cost* cost_;
  int64_t row_stride_;
  int rows_;
  int columns_;
  double* v_;         // [padded] -inf once settled
  double* distance_;  // [padded] +inf once settled
  Settled* settled_;  // [rows]
  uint64_t* taken_;   // [words] a bit for each column that has a row
  Cost* price_;       // [padded] v while rows bid
  int* predecessor_;  // [padded] rows that wait, before there are paths
  int* row_of_;       // [columns]
  int* column_of_;    // [rows]
  Stage stage_ = Stage::kClaims;
  int unassigned_ = 0;
  int count_settled_ = 0;
  bool may_bid_ = true;
  double scale_ = 1;  // of costs on paths
};

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
