// The columns of an assignment problem (see lap.h) for any number of lanes that run the same code:
// one host thread, several of them, the threads of a CUDA warp or block. Lane k owns the columns k,
// k + count(), ... and is the only one to write their entries, except that lane 0 flips the paths.
//
// A Lanes policy has
//   lane(), count()        which lane this is, and of how many
//   argmin(value, index)   leaves in every lane the smallest value (a double) and, among equals,
//                          the lowest index (an int). No value is NaN. It need not order memory:
//                          shuffles within a warp are enough.
//   sync()                 a barrier after which every lane sees what any lane wrote before it
// and a Slots policy says where a lane keeps what it alone needs of its columns:
//   MemorySlots            in arrays, for any number of columns
//   RegisterSlots<N>       in local arrays for at most N columns a lane, in registers on a GPU
//
// In CUDA all lanes of a problem call `solve` together, with LaneArrays in shared memory (or
// global: a block with MemorySlots is limited by nothing else); the costs may lie anywhere, and
// nothing writes them. A warp's sync() is __syncwarp(), a block's __syncthreads(). When `solve` has
// returned, any lane may read column_of(row) and row_of(column). The rounding must be that of IEEE
// additions: the only multiplication, by a power of two, is exact whether fused with one or not.

#pragma once

#include "lap.h"

namespace detr_fast {

// What all lanes see.
struct LaneArrays {
  int* column_of_row;  // [rows]
  int* row_of_column;  // [columns]
  double* v;           // [columns]
  int* predecessor;    // [columns] the row that reached it; before there are paths, rows that wait
};

// The slot of column j is j.
class MemorySlots {
 public:
  // `distance` is an array of a double for each column, shared by the lanes of a problem.
  HOST_DEVICE MemorySlots(const LaneArrays& arrays, double* distance)
      : arrays_(arrays), distance_(distance) {}

  template <class Visit>
  HOST_DEVICE static void for_each(int lane, int count, int columns, const Visit& visit) {
    for (int j = lane; j < columns; j += count) visit(j, j);
  }
  template <class Matrix, class Visit>
  HOST_DEVICE static void for_each_cost(const Matrix& cost, int row, int lane, int count,
                                        const Visit& visit) {
    for (int j = lane; j < cost.columns; j += count) visit(j, j, cost.at(row, j));
  }
  static constexpr int kRunners = 1;
  HOST_DEVICE static int runner(int) { return 0; }
  HOST_DEVICE static int slot_of(int column, int) { return column; }
  HOST_DEVICE static int column_of(int slot, int, int) { return slot; }

  HOST_DEVICE void clear() {}
  HOST_DEVICE void forget(int slot) {
    distance_[slot] = kInfinity;
    arrays_.predecessor[slot] = 0;
  }
  HOST_DEVICE bool is_free(int slot) const { return arrays_.row_of_column[slot] < 0; }
  HOST_DEVICE void release(int) {}
  HOST_DEVICE void occupy(int) {}
  HOST_DEVICE double v(int slot) const { return arrays_.v[slot]; }
  HOST_DEVICE void set_v(int slot, double value) { arrays_.v[slot] = value; }
  HOST_DEVICE void set_any_v(int slot, double value) { set_v(slot, value); }
  HOST_DEVICE double distance(int slot) const { return distance_[slot]; }
  HOST_DEVICE void reach(int slot, int column, double distance, int row) {
    distance_[slot] = distance;
    arrays_.predecessor[column] = row;
  }
  // A settled column has the complement of its predecessor.
  HOST_DEVICE bool is_settled(int slot) const { return arrays_.predecessor[slot] < 0; }
  HOST_DEVICE void settle(int slot) { arrays_.predecessor[slot] = ~arrays_.predecessor[slot]; }

 private:
  LaneArrays arrays_;
  double* distance_;
};

// The slot of column j is j / count(). Whatever indexes the arrays is a constant once the loop over
// the slots is unrolled; otherwise they would lie in memory. Predecessors are in memory all the
// same: they are written without waiting and read once, when a path is flipped.
template <int N>
class RegisterSlots {
  static_assert(N <= 32, "free_ and settled_ have a bit for each slot");

 public:
  HOST_DEVICE explicit RegisterSlots(const LaneArrays& arrays) : arrays_(arrays) {}

  template <class Visit>
  HOST_DEVICE static void for_each(int lane, int count, int columns, const Visit& visit) {
    UNROLL
    for (int slot = 0; slot < N; ++slot) {
      const int j = lane + slot * count;
      if (j < columns) visit(slot, j);
    }
  }
  // Empty slots too, at a cost of +inf. Without branches in `visit` there are none at all, and a
  // GPU asks for many costs before it waits for the first.
  template <class Matrix, class Visit>
  HOST_DEVICE static void for_each_cost(const Matrix& cost, int row, int lane, int count,
                                        const Visit& visit) {
    constexpr int kBatch = N % 8 ? N % 10 ? N : 10 : 8;
    using Cost = decltype(cost.at(0, 0));
    const int left = cost.columns - lane;
    UNROLL
    for (int first = 0; first < N; first += kBatch) {
      Cost costs[kBatch];
      UNROLL
      for (int k = 0; k < kBatch; ++k) {
        const int ahead = (first + k) * count;
        costs[k] = ahead < left ? cost.at(row, lane + ahead) : static_cast<Cost>(kInfinity);
      }
      UNROLL
      for (int k = 0; k < kBatch; ++k) {
        visit(first + k, lane + (first + k) * count, costs[k]);
      }
    }
  }
  // A minimum over the slots is taken by so many runners, each over its share, because a chain of
  // comparisons takes as long as it has links.
  static constexpr int kRunners = N < 4 ? 1 : 4;
  HOST_DEVICE static int runner(int slot) { return slot % kRunners; }
  HOST_DEVICE static int slot_of(int column, int count) { return column / count; }
  HOST_DEVICE static int column_of(int slot, int lane, int count) { return lane + slot * count; }

  HOST_DEVICE void clear() {
    UNROLL
    for (int slot = 0; slot < N; ++slot) {
      v_[slot] = 0;
      forget(slot);
    }
    free_ = 0;
  }
  HOST_DEVICE void forget(int slot) {
    distance_[slot] = kInfinity;
    settled_ &= ~bit(slot);
  }
  HOST_DEVICE bool is_free(int slot) const { return free_ & bit(slot); }
  HOST_DEVICE void release(int slot) { free_ |= bit(slot); }
  HOST_DEVICE void occupy(int slot) { free_ &= ~bit(slot); }
  HOST_DEVICE double v(int slot) const { return v_[slot]; }
  HOST_DEVICE void set_v(int slot, double value) { v_[slot] = value; }
  // For a slot that is not a constant.
  HOST_DEVICE void set_any_v(int slot, double value) {
    UNROLL
    for (int k = 0; k < N; ++k) v_[k] = k == slot ? value : v_[k];
  }
  HOST_DEVICE double distance(int slot) const { return distance_[slot]; }
  HOST_DEVICE void reach(int slot, int column, double distance, int row) {
    distance_[slot] = distance;
    arrays_.predecessor[column] = row;
  }
  HOST_DEVICE bool is_settled(int slot) const { return settled_ & bit(slot); }
  HOST_DEVICE void settle(int slot) { settled_ |= bit(slot); }

 private:
  HOST_DEVICE static unsigned bit(int slot) { return 1u << slot; }

  LaneArrays arrays_;
  double v_[N];
  double distance_[N];
  unsigned free_ = 0, settled_ = 0;
};

// A Matrix has rows, columns and at(row, column). One without a run-time stride between columns
// takes fewer registers: with that of CostMatrix nvcc keeps the offset of each of 32 slots, and
// spills.
template <class Cost, class Lanes, class Slots, class Matrix = CostMatrix<Cost>>
class LaneColumns {
 public:
  HOST_DEVICE LaneColumns(const Matrix& cost, const LaneArrays& arrays, const Slots& slots,
                          Lanes& lanes)
      : cost_(cost), arrays_(arrays), slots_(slots), lanes_(lanes) {}

  HOST_DEVICE int rows() const { return cost_.rows; }
  HOST_DEVICE int columns() const { return cost_.columns; }
  HOST_DEVICE bool may_bid() const { return may_bid_; }
  HOST_DEVICE int column_of(int row) const { return arrays_.column_of_row[row]; }
  HOST_DEVICE int row_of(int column) const { return arrays_.row_of_column[column]; }

  HOST_DEVICE void begin() {
    for (int row = lanes_.lane(); row < cost_.rows; row += lanes_.count()) {
      arrays_.column_of_row[row] = -1;
    }
    slots_.clear();
    for_own_columns([&](int slot, int j) {
      arrays_.row_of_column[j] = -1;
      arrays_.v[j] = 0;
      slots_.release(slot);
    });
    lanes_.sync();
  }

  HOST_DEVICE Nearest row_minimum(int row) {
    Cost lowest = kInfinite;
    int column = cost_.columns;
    for_own_costs(row, [&](int, int j, Cost c) {
      may_bid_ &= fits(c);
      c = c > -kInfinite ? c : -kInfinite;  // NaN too
      column = c < lowest ? j : column;
      lowest = c < lowest ? c : lowest;
    });
    double value = lowest;
    lanes_.argmin(value, column);
    return {value, column};
  }

  HOST_DEVICE void claim(int row, int column) {
    if (!owns(column) || row_of(column) >= 0) return;
    arrays_.row_of_column[column] = row;
    arrays_.column_of_row[row] = column;
    slots_.occupy(slot_of(column));
  }

  HOST_DEVICE void publish() {
    double agreed = may_bid_;
    int unused = 0;
    lanes_.argmin(agreed, unused);
    may_bid_ = agreed > 0;
    lanes_.sync();
  }

  HOST_DEVICE int waiting(int place) const { return arrays_.predecessor[place]; }

  HOST_DEVICE bool bid(int row, int place) {
    Cost own_first = kInfinite, own_second = kInfinite;
    int column = cost_.columns;
    for_own_costs(row, [&](int slot, int j, Cost c) {
      const Cost s = c - static_cast<Cost>(slots_.v(slot));
      const Cost beaten = s < own_first ? own_first : s;
      own_second = beaten < own_second ? beaten : own_second;
      column = s < own_first ? j : column;
      own_first = s < own_first ? s : own_first;
    });
    double first = own_first;
    lanes_.argmin(first, column);
    double second = owns(column) ? own_second : own_first;
    int unused = 0;
    lanes_.argmin(second, unused);
    if (!(first < second) || second == kInfinity) return false;
    const Cost price = price_after_bid(cost_.at(row, column), static_cast<Cost>(second));
    if (!(price < arrays_.v[column])) return false;
    const int loser = row_of(column);
    lanes_.sync();
    if (owns(column)) {
      slots_.occupy(slot_of(column));
      slots_.set_any_v(slot_of(column), price);
      arrays_.v[column] = price;
      arrays_.row_of_column[column] = row;
      arrays_.column_of_row[row] = column;
      if (loser >= 0) {
        arrays_.column_of_row[loser] = -1;
        arrays_.predecessor[place] = loser;
      }
    }
    lanes_.sync();
    return loser >= 0;
  }

  HOST_DEVICE void begin_paths() {
    lanes_.sync();
    for_own_columns([&](int slot, int) { slots_.forget(slot); });
  }

  HOST_DEVICE Nearest relax(int row, double base) {
    constexpr int kAssigned = 1 << 30;  // puts a slot behind all slots of free columns
    double values[Slots::kRunners];
    int slots[Slots::kRunners];
    for (int k = 0; k < Slots::kRunners; ++k) {
      values[k] = kInfinity;
      slots[k] = kAssigned;
    }
    for_own_costs(row, [&](int slot, int j, Cost c) {
      const double through = (on_paths(c) - slots_.v(slot)) + base;
      const bool open = !slots_.is_settled(slot);
      if (open & (through < slots_.distance(slot))) slots_.reach(slot, j, through, row);
      const double distance = open ? slots_.distance(slot) : kInfinity;
      const int k = Slots::runner(slot);
      keep_smaller(values[k], slots[k], distance, slots_.is_free(slot) ? slot : kAssigned + slot);
    });
    for (int k = 1; k < Slots::kRunners; ++k) {
      keep_smaller(values[0], slots[0], values[k], slots[k]);
    }
    // Across lanes the column counts, behind all free columns if it is assigned.
    const bool assigned = slots[0] >= kAssigned;
    const int own = Slots::column_of(assigned ? slots[0] - kAssigned : slots[0], lanes_.lane(),
                                     lanes_.count());
    const int rank_of_own = assigned ? cost_.columns + own : own;
    int rank = values[0] < kInfinity ? rank_of_own : 2 * cost_.columns;
    lanes_.argmin(values[0], rank);
    return {values[0], rank < cost_.columns ? rank : rank - cost_.columns};
  }

  HOST_DEVICE double settle(const Nearest& nearest) {
    const int j = nearest.column;
    if (owns(j)) slots_.settle(slot_of(j));
    return nearest.value - (on_paths(cost_.at(row_of(j), j)) - arrays_.v[j]);
  }

  HOST_DEVICE void augment(int start, const Nearest& nearest) {
    lanes_.sync();
    for_own_columns([&](int slot, int j) {
      if (!slots_.is_settled(slot)) return;
      const double v = slots_.v(slot) - (nearest.value - slots_.distance(slot));
      slots_.set_v(slot, v);
      arrays_.v[j] = v;
    });
    if (owns(nearest.column)) slots_.occupy(slot_of(nearest.column));
    if (lanes_.lane() == 0) flip(start, nearest.column);
    lanes_.sync();
    for_own_columns([&](int slot, int) { slots_.forget(slot); });
  }

 protected:
  bool may_bid_ = true;  // as far as this lane has seen; agreed on in publish()

 private:
  static constexpr Cost kInfinite = static_cast<Cost>(kInfinity);

  // visit(slot, column) for each column of this lane, ascending.
  template <class Visit>
  HOST_DEVICE void for_own_columns(const Visit& visit) {
    Slots::for_each(lanes_.lane(), lanes_.count(), cost_.columns, visit);
  }

  // visit(slot, column, cost) for each column of this lane and perhaps for empty slots.
  template <class Visit>
  HOST_DEVICE void for_own_costs(int row, const Visit& visit) {
    Slots::for_each_cost(cost_, row, lanes_.lane(), lanes_.count(), visit);
  }

  HOST_DEVICE static void keep_smaller(double& value, int& rank, double other, int other_rank) {
    const bool smaller = (other < value) | ((other == value) & (other_rank < rank));
    value = smaller ? other : value;
    rank = smaller ? other_rank : rank;
  }

  HOST_DEVICE double on_paths(double c) const {
    return kScaleBeyond<Cost> == 1 || may_bid_ ? c : c * kScaleBeyond<Cost>;
  }

  HOST_DEVICE bool owns(int column) const { return column % lanes_.count() == lanes_.lane(); }
  HOST_DEVICE int slot_of(int column) const { return Slots::slot_of(column, lanes_.count()); }

  // Gives each column on the path the row that reached it, from the free end backwards.
  HOST_DEVICE void flip(int start, int column) {
    int row;
    do {
      row = arrays_.predecessor[column];
      if (row < 0) row = ~row;
      arrays_.row_of_column[column] = row;
      const int next = arrays_.column_of_row[row];
      arrays_.column_of_row[row] = column;
      column = next;
    } while (row != start);
  }

  Matrix cost_;
  LaneArrays arrays_;
  Slots slots_;
  Lanes& lanes_;
};

// One lane: the whole problem in one thread.
struct OneLane {
  HOST_DEVICE int lane() const { return 0; }
  HOST_DEVICE int count() const { return 1; }
  HOST_DEVICE void sync() const {}
  HOST_DEVICE void argmin(double&, int&) const {}
};

}  // namespace detr_fast
