// Rectangular linear sum assignment: each of `rows` rows gets a column of its own, rows <= columns,
// at the smallest total cost. No torch, no CUDA headers, no allocation.
//
// Row minima and greedy claims, then bids, then shortest augmenting paths for the rows that are
// left (Crouse, "On implementing 2D rectangular assignment algorithms", IEEE TAES 52(4), 2016; the
// bids are the augmenting row reduction of Jonker and Volgenant, Computing 38, 1987). The only
// duals kept are those of the columns, v <= 0 and 0 on free columns; that of a row follows from its
// assigned pair, which therefore is always tight. Starting from row minima is valid for rows <
// columns, where column reduction is not.
//
// A row that bids takes the column with its lowest c - v, whoever has it, and lowers v of the
// column until its second choice would be as good; the loser bids again later. Bids compare c - v
// rounded to Cost, and v is a Cost as long as there are bids: where one rounded number is below
// another, so is the exact one, and v is rounded up, so no better exchange is rounded away. Paths
// are in float64. Few rows do not bid, nor rows with columns to spare: see bids_are_worth_it.
//
// Ties, the same however the work is divided: rows are served in ascending order; a row claims its
// cheapest column, the lowest index among equals, if that is free; it bids only if its first choice
// is below its second and v becomes lower; on a path the nearest column is taken next, among equals
// a free one before an assigned one, then the lowest index. A column keeps the first row that
// reached it at its distance.
//
// `solve` is written once over a `Columns`, which holds the state of the columns and does the loops
// over them:
//   begin()               nothing is assigned
//   row_minimum(row)      cheapest column of a row; -inf for a row with NaN or -inf
//   claim(row, column)    assigns them if the column is free
//   rows(), columns()     the size of the problem
//   publish()             makes the claims visible to every lane
//   column_of(row), row_of(column)   the assigned partner, -1 for none
//   may_bid()             whether no finite cost is beyond kLargestCost
//   bid(row, place)       true if a row lost its column to `row`; it is then waiting(place), place
//                         in [0, rows)
//   begin_paths()         there are no bids from here on
//   relax(row, base)      distances through `row`; the nearest column that is not settled
//   settle(nearest)       takes that column off; the base for relaxing the row assigned to it
//   augment(row, nearest) new duals, and the assignments along the path from `row` to `nearest`
// LaneColumns in lap_lanes.h is that for any number of cooperating lanes; the CPU's SIMD version of
// it is in cpu/.

#pragma once

#include <cstring>
#include <type_traits>

#include "host_device.h"

namespace detr_fast {

constexpr double kInfinity = __builtin_huge_val();

// Neither costs below this nor what bids make of them overflow in Cost.
template <class Cost>
constexpr double kLargestCost = sizeof(Cost) == sizeof(float) ? 0x1p100 : 0x1p900;

// What costs are multiplied by on paths if one of them is beyond kLargestCost, so that distances do
// not overflow. Floats never need it.
template <class Cost>
constexpr double kScaleBeyond = sizeof(Cost) == sizeof(float) ? 1.0 : 0x1p-124;

// How often the rows may bid in all. Rows with equal wishes bid against each other in small steps,
// which a path settles at once; but paths grow faster with the problem than bids do. Measured on
// square problems of 100 to 1,000 rows, where 4 to 12 bids a row take the least time.
HOST_DEVICE inline long long most_bids(int rows) {
  const int per_row = 4 + rows / 128;
  return static_cast<long long>(per_row < 16 ? per_row : 16) * rows;
}

enum class LapStatus : int {
  kOptimal = 0,
  kInfeasible = 1,  // +inf entries leave no full matching
  kInvalid = 2,     // an entry is NaN or -inf
};

struct Nearest {
  double value;
  int column;
};

// False for NaN, too.
template <class Cost>
HOST_DEVICE bool fits(Cost c) {
  return (c > -kLargestCost<Cost> && c < kLargestCost<Cost>) || c == static_cast<Cost>(kInfinity);
}

// The least value above x.
template <class Cost>
HOST_DEVICE Cost next_above(Cost x) {
  using Bits = std::conditional_t<sizeof(Cost) == sizeof(int), int, long long>;
  Bits bits = 1;  // the smallest denormal
  if (x != 0) {
    memcpy(&bits, &x, sizeof x);
    bits += x > 0 ? 1 : -1;
  }
  memcpy(&x, &bits, sizeof x);
  return x;
}

// v of a column that a row takes at cost c if the second lowest c - v of the row rounds to
// `second`: not below the exact difference, whatever was rounded away.
template <class Cost>
HOST_DEVICE Cost price_after_bid(Cost c, Cost second) {
  return next_above(c + next_above(-second));
}

// Fewer take a third less time without bids; measured on square problems of 3 to 64 rows.
constexpr int kFewestThatBid = 48;

// With columns to spare paths are short. Without bids equal optima are chosen between more often as
// SciPy, which has paths only, chooses.
HOST_DEVICE inline bool bids_are_worth_it(int rows, int columns) {
  return rows >= kFewestThatBid && columns / 2 < rows;
}

// Lets the rows without a column bid, one after another; whoever loses one waits behind the others.
template <class Columns>
HOST_DEVICE void assign_by_bids(Columns& columns) {
  const int rows = columns.rows();
  int next = 0, first = 0, waiting = 0;
  for (long long bids = most_bids(rows); bids > 0;) {
    int row = next;
    if (next < rows) {
      ++next;
    } else if (waiting > 0) {
      row = columns.waiting(first);
      first = first + 1 < rows ? first + 1 : 0;
      --waiting;
    } else {
      return;
    }
    if (columns.column_of(row) >= 0) continue;
    const int last = first + waiting;
    waiting += columns.bid(row, last < rows ? last : last - rows);
    --bids;
  }
}

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
  columns.publish();
  if (columns.may_bid() && bids_are_worth_it(columns.rows(), columns.columns())) {
    assign_by_bids(columns);
  }
  columns.begin_paths();
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

  HOST_DEVICE Cost at(int row, int column) const {
    return data[row * row_stride + column * column_stride];
  }
};

}  // namespace detr_fast
