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
// LaneColumns in lap_lanes.h is that for any number of cooperating lanes; the CPU's SIMD version of it
// is in cpu/.

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
  Nearest nearest = columns.relax(start, 0);
  while (nearest.value < kInfinity) {
    const int row = columns.row_of(nearest.column);
    if (row < 0) {
      columns.augment(start, nearest);
      return true;
    }
    nearest = columns.relax(row, columns.settle(nearest));
  }
  return false;
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

  HOST_DEVICE Cost entry(int row, int column) const {
    return data[row * row_stride + column * column_stride];
  }
  HOST_DEVICE double at(int row, int column) const {
    return static_cast<double>(entry(row, column));
  }
};

}  // namespace detr_fast
