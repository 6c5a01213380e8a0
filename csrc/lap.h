// Rectangular linear sum assignment: each of `rows` rows gets a column of its own, rows <= columns,
// at the smallest total cost. No torch, no CUDA headers, no allocation.
//
// Row minima, then greedy claims, then shortest augmenting paths for the rows that are left
// (Crouse, "On implementing 2D rectangular assignment algorithms", IEEE TAES 52(4), 2016; Jonker and
// Volgenant, Computing 38, 1987). The only duals kept are those of the columns, v <= 0 and 0 on
// free columns; that of a row follows from its assigned pair, which therefore is always tight.
// Starting from row minima is valid for rows < columns, where column reduction is not. Duals and
// distances are float64 whatever the costs: in float32 they could round a better exchange away.
//
// Ties, the same however the work is divided: rows are served in ascending order; a row claims its
// cheapest column, the lowest index among equals, if that is free; on a path the nearest column is
// taken next, among equals a free one before an assigned one, then the lowest index. A column keeps
// the first row that reached it at its distance.
//
// `solve` is written once over a `Columns`, which holds the state of the columns and does the loops
// over them:
//   begin()               nothing is assigned
//   row_minimum(row)      cheapest column of a row; -inf for a row with NaN or -inf
//   in_range()            whether the costs seen fit the arithmetic of this Columns
//   claim(row, column)    assigns them if the column is free
//   publish()             makes the claims visible to every lane
//   column_of(row), row_of(column)   the assigned partner, -1 for none
//   relax(row, base)      distances through `row`; the nearest column that is not settled
//   settle(nearest)       takes that column off; the base for relaxing the row assigned to it
//   augment(row, nearest) new duals, and the assignments along the path from `row` to `nearest`
// LaneColumns is that for any number of cooperating lanes; the CPU's SIMD version of it is in cpu/.

#pragma once

#include "host_device.h"

namespace detr_fast {

constexpr double kInfinity = __builtin_huge_val();

enum class LapStatus : int {
  kOptimal = 0,
  kInfeasible = 1,  // +inf entries leave no full matching
  kInvalid = 2,     // an entry is NaN or -inf
  kOutOfRange = 3,  // entries too large for this Columns; says nothing about the problem
};

struct Nearest {
  double value;
  int column;
};

// Extends the assignment by `start`; false if no free column can be reached.
template <class Columns>
HOST_DEVICE bool assign_by_shortest_path(Columns& columns, int start) {
  int row = start;
  double base = 0;
  for (;;) {
    const Nearest nearest = columns.relax(row, base);
    if (nearest.value == kInfinity) return false;
    row = columns.row_of(nearest.column);
    if (row < 0) {
      columns.augment(start, nearest);
      return true;
    }
    base = columns.settle(nearest);
  }
}

// Unless the status is kOptimal, the assignment that `columns` holds afterwards means nothing.
template <class Columns>
HOST_DEVICE LapStatus solve(Columns& columns) {
  columns.begin();
  bool feasible = true;
  for (int row = 0; row < columns.rows(); ++row) {
    const Nearest nearest = columns.row_minimum(row);
    if (nearest.value == -kInfinity) return LapStatus::kInvalid;
    feasible &= nearest.value < kInfinity;
    if (feasible) columns.claim(row, nearest.column);
  }
  if (!feasible) return LapStatus::kInfeasible;
  if (!columns.in_range()) return LapStatus::kOutOfRange;
  columns.publish();
  for (int row = 0; row < columns.rows(); ++row) {
    if (columns.column_of(row) < 0 && !assign_by_shortest_path(columns, row)) {
      return LapStatus::kInfeasible;
    }
  }
  return LapStatus::kOptimal;
}

// Entry (i, j) is data[i * row_stride + j * column_stride].
template <class Cost>
struct CostMatrix {
  const Cost* data;
  long long row_stride;
  long long column_stride;
  int rows;
  int columns;

  HOST_DEVICE double at(int row, int column) const {
    return static_cast<double>(data[row * row_stride + column * column_stride]);
  }
};

// Arrays that all lanes see; each column's entries of v, distance and predecessor are written only
// by the lane that owns the column.
struct LaneArrays {
  int* column_of_row;    // [rows]
  int* row_of_column;    // [columns]
  double* v;             // [columns]
  double* distance;      // [columns] from the row being assigned
  int* predecessor;      // [columns] the row that reached it; complemented once settled
};

// The state of the columns for `count()` lanes that run the same code, lane k owning the columns k,
// k + count(), ... A Lanes policy has lane() and count(); argmin(value, index), which leaves in
// every lane the smallest value and, among equals, the lowest index; and sync(), a barrier after
// which every lane sees what any lane wrote before it. argmin need not order memory.
template <class Cost, class Lanes>
class LaneColumns {
 public:
  HOST_DEVICE LaneColumns(const CostMatrix<Cost>& cost, const LaneArrays& arrays, Lanes& lanes)
      : cost_(cost), arrays_(arrays), lanes_(lanes) {}

  HOST_DEVICE int rows() const { return cost_.rows; }
  HOST_DEVICE bool in_range() const { return true; }
  HOST_DEVICE int column_of(int row) const { return arrays_.column_of_row[row]; }
  HOST_DEVICE int row_of(int column) const { return arrays_.row_of_column[column]; }

  HOST_DEVICE void begin() {
    for (int row = lanes_.lane(); row < cost_.rows; row += lanes_.count()) {
      arrays_.column_of_row[row] = -1;
    }
    for (int j = lanes_.lane(); j < cost_.columns; j += lanes_.count()) {
      arrays_.row_of_column[j] = -1;
      arrays_.v[j] = 0;
      forget(j);
    }
    lanes_.sync();
  }

  HOST_DEVICE Nearest row_minimum(int row) {
    double value = kInfinity;
    int column = cost_.columns;
    for (int j = lanes_.lane(); j < cost_.columns; j += lanes_.count()) {
      double c = cost_.at(row, j);
      if (!(c > -kInfinity)) c = -kInfinity;  // NaN too
      if (c < value) {
        value = c;
        column = j;
      }
    }
    lanes_.argmin(value, column);
    return {value, column};
  }

  HOST_DEVICE void claim(int row, int column) {
    if (column % lanes_.count() != lanes_.lane() || row_of(column) >= 0) return;
    arrays_.row_of_column[column] = row;
    arrays_.column_of_row[row] = column;
  }

  HOST_DEVICE void publish() { lanes_.sync(); }

  HOST_DEVICE Nearest relax(int row, double base) {
    double value = kInfinity;
    int rank = 2 * cost_.columns;  // the column, behind all free columns if it is assigned
    for (int j = lanes_.lane(); j < cost_.columns; j += lanes_.count()) {
      if (arrays_.predecessor[j] < 0) continue;
      const double through = (cost_.at(row, j) - arrays_.v[j]) + base;
      if (through < arrays_.distance[j]) {
        arrays_.distance[j] = through;
        arrays_.predecessor[j] = row;
      }
      const double distance = arrays_.distance[j];
      const int own_rank = row_of(j) < 0 ? j : cost_.columns + j;
      if (distance < value || (distance == value && own_rank < rank)) {
        value = distance;
        rank = own_rank;
      }
    }
    lanes_.argmin(value, rank);
    return {value, rank < cost_.columns ? rank : rank - cost_.columns};
  }

  HOST_DEVICE double settle(const Nearest& nearest) {
    const int j = nearest.column;
    if (j % lanes_.count() == lanes_.lane()) {
      arrays_.predecessor[j] = ~arrays_.predecessor[j];
    }
    return nearest.value - (cost_.at(row_of(j), j) - arrays_.v[j]);
  }

  HOST_DEVICE void augment(int start, const Nearest& nearest) {
    lanes_.sync();
    for (int j = lanes_.lane(); j < cost_.columns; j += lanes_.count()) {
      if (arrays_.predecessor[j] < 0) arrays_.v[j] -= nearest.value - arrays_.distance[j];
    }
    if (lanes_.lane() == 0) flip(start, nearest.column);
    lanes_.sync();
    for (int j = lanes_.lane(); j < cost_.columns; j += lanes_.count()) forget(j);
  }

 private:
  HOST_DEVICE void forget(int column) {
    arrays_.distance[column] = kInfinity;
    arrays_.predecessor[column] = 0;
  }

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

  CostMatrix<Cost> cost_;
  LaneArrays arrays_;
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
