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
  HOST_DEVICE static int slot_of(int column, int) { return column; }

  HOST_DEVICE void forget(int slot) {
    distance_[slot] = kInfinity;
    arrays_.predecessor[slot] = 0;
  }
  HOST_DEVICE bool is_free(int slot) const { return arrays_.row_of_column[slot] < 0; }
  HOST_DEVICE void release(int) {}
  HOST_DEVICE void occupy(int) {}
  HOST_DEVICE double v(int slot) const { return arrays_.v[slot]; }
  HOST_DEVICE void set_v(int slot, double value) { arrays_.v[slot] = value; }
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
// the slots is unrolled; otherwise they would lie in memory.
template <int N>
class RegisterSlots {
  static_assert(N <= 32, "free_ and settled_ have a bit for each slot");

 public:
  HOST_DEVICE explicit RegisterSlots(const LaneArrays& arrays) : arrays_(arrays) {}

  template <class Visit>
  HOST_DEVICE static void for_each(int lane, int count, int columns, const Visit& visit) {
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int slot = 0; slot < N; ++slot) {
      const int j = lane + slot * count;
      if (j < columns) visit(slot, j);
    }
  }
  HOST_DEVICE static int slot_of(int column, int count) { return column / count; }

  HOST_DEVICE void forget(int slot) {
    distance_[slot] = kInfinity;
    settled_ &= ~bit(slot);
  }
  HOST_DEVICE bool is_free(int slot) const { return free_ & bit(slot); }
  HOST_DEVICE void release(int slot) { free_ |= bit(slot); }
  HOST_DEVICE void occupy(int slot) { free_ &= ~bit(slot); }
  HOST_DEVICE double v(int slot) const { return v_[slot]; }
  HOST_DEVICE void set_v(int slot, double value) { v_[slot] = value; }
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
    for_own_columns([&](int, int j) {
      Cost c = cost_.at(row, j);
      may_bid_ = may_bid_ && fits(c);
      if (!(c > -kInfinite)) c = -kInfinite;  // NaN too
      if (c < lowest) {
        lowest = c;
        column = j;
      }
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
    for_own_columns([&](int, int j) {
      const Cost s = cost_.at(row, j) - static_cast<Cost>(arrays_.v[j]);
      if (s < own_first) {
        own_second = own_first;
        own_first = s;
        column = j;
      } else if (s < own_second) {
        own_second = s;
      }
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
    for_own_columns([&](int slot, int j) {
      slots_.set_v(slot, arrays_.v[j]);
      slots_.forget(slot);
    });
  }

  HOST_DEVICE Nearest relax(int row, double base) {
    double value = kInfinity;
    int rank = 2 * cost_.columns;  // the column, behind all free columns if it is assigned
    for_own_columns([&](int slot, int j) {
      if (slots_.is_settled(slot)) return;
      const double through = (distance_of(row, j) - slots_.v(slot)) + base;
      if (through < slots_.distance(slot)) slots_.reach(slot, j, through, row);
      const double distance = slots_.distance(slot);
      const int own_rank = slots_.is_free(slot) ? j : cost_.columns + j;
      if (distance < value || (distance == value && own_rank < rank)) {
        value = distance;
        rank = own_rank;
      }
    });
    lanes_.argmin(value, rank);
    return {value, rank < cost_.columns ? rank : rank - cost_.columns};
  }

  HOST_DEVICE double settle(const Nearest& nearest) {
    const int j = nearest.column;
    if (owns(j)) slots_.settle(slot_of(j));
    return nearest.value - (distance_of(row_of(j), j) - arrays_.v[j]);
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

 private:
  static constexpr Cost kInfinite = static_cast<Cost>(kInfinity);

  // visit(slot, column) for each column of this lane, ascending.
  template <class Visit>
  HOST_DEVICE void for_own_columns(const Visit& visit) {
    Slots::for_each(lanes_.lane(), lanes_.count(), cost_.columns, visit);
  }

  HOST_DEVICE double distance_of(int row, int column) const {
    const double c = cost_.at(row, column);
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
  bool may_bid_ = true;  // as far as this lane has seen; agreed on in publish()
};

// One lane: the whole problem in one thread.
struct OneLane {
  HOST_DEVICE int lane() const { return 0; }
  HOST_DEVICE int count() const { return 1; }
  HOST_DEVICE void sync() const {}
  HOST_DEVICE void argmin(double&, int&) const {}
};

}  // namespace detr_fast
