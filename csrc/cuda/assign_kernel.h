// The kernel that solves a batch of assignment problems, a block of threads for each. All its warps
// bring the costs into shared memory, if they fit, and find the minima of the rows; then the first
// warp alone, or where there are too many columns for its registers the whole block, solves with
// lap.h, and so with the same answer as on a CPU.

#pragma once

#include <cuda_pipeline.h>

#include "../lap_lanes.h"
#include "../matching_cost.h"
#include "assign.h"
#include "lanes.h"

namespace detr_fast {

// Who solves: a warp with at most 32 * N columns.
template <int N>
struct WarpTeam {
  static constexpr int kThreads = 128;
  using Lanes = WarpLanes;
  using Slots = RegisterSlots<N>;
  __device__ static bool solves() { return threadIdx.x < kWarpSize; }
  __device__ static Lanes lanes() { return {}; }
  __device__ static Slots slots(const LaneArrays& arrays, double*) { return Slots(arrays); }
};

// Or a block, with any number of columns.
struct BlockTeam {
  static constexpr int kThreads = 384;
  using Lanes = BlockLanes;
  using Slots = MemorySlots;
  static_assert(sizeof(BlockLanes::Scratch) <= kScratchBytes, "the lanes' part of shared memory");
  __device__ static bool solves() { return true; }
  __device__ static Lanes lanes() {
    return Lanes(*reinterpret_cast<BlockLanes::Scratch*>(block_memory));
  }
  __device__ static Slots slots(const LaneArrays& arrays, double* distance) {
    return Slots(arrays, distance);
  }
};

// visit(i, j) for each entry of a matrix, by the threads of the block: a warp takes runs of j.
template <class Visit>
__device__ void for_each_entry(int rows, int columns, const Visit& visit) {
  for (int i = warp_of_block(); i < rows; i += warps_of_block()) {
    for (int j = lane_of_warp(); j < columns; j += kWarpSize) visit(i, j);
  }
}

template <class Cost>
__device__ AssignmentProblem<Cost> problem_of(const AssignmentBatch<Cost>& batch, int64_t index) {
  if (batch.problems) return batch.problems[index];
  int rows = batch.rows, columns = batch.columns;
  if (batch.sizes) {
    rows = size_within(batch.sizes[2 * index], rows);
    columns = size_within(batch.sizes[2 * index + 1], columns);
  }
  const bool turned = rows > columns;
  const CostTensor<Cost> from = turned ? batch.tall : batch.wide;
  const Cost* data = from.data + index * from.problem_stride;
  const CostMatrix<Cost> cost =
      turned ? CostMatrix<Cost>{data, from.column_stride, from.row_stride, columns, rows}
             : CostMatrix<Cost>{data, from.row_stride, from.column_stride, rows, columns};
  return {cost, turned, batch.answer + index * batch.rows, batch.rows, 0};
}

// Copies the costs to dense rows in shared memory. Reads follow the smaller stride.
template <class Cost>
__device__ void copy_costs(const CostMatrix<Cost>& from, Cost* to) {
  const auto copy = [&](int i, int j) {
    __pipeline_memcpy_async(to + i * from.columns + j,
                            from.data + i * from.row_stride + j * from.column_stride, sizeof(Cost));
  };
  if (from.column_stride <= from.row_stride) {
    for_each_entry(from.rows, from.columns, copy);
  } else {
    for_each_entry(from.columns, from.rows, [&](int j, int i) { copy(i, j); });
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// Columns whose row minima were found beforehand, and in the same pass whether costs allow bids.
template <class Columns, class Cost>
class ColumnsWithMinima : public Columns {
 public:
  __device__ ColumnsWithMinima(const Columns& columns, const Cost* minimum, const int* cheapest,
                               bool may_bid)
      : Columns(columns), minimum_(minimum), cheapest_(cheapest) {
    this->may_bid_ = may_bid;
  }

  __device__ void see(Cost cost) { this->may_bid_ &= fits(cost); }

  __device__ Nearest row_minimum(int row) const {
    return {static_cast<double>(minimum_[row]), cheapest_[row]};
  }

 private:
  const Cost* minimum_;
  const int* cheapest_;
};

// Puts the last resort in the place of +inf, here and in the row minima, and returns it.
template <class Cost, class Lanes>
__device__ Cost allow_as_last_resort(const CostMatrix<Cost>& cost, Cost* minimum, int* cheapest,
                                     Lanes& lanes) {
  constexpr Cost kNone = static_cast<Cost>(kInfinity);
  // Whoever launches with `yields` lets this kernel overwrite the costs.
  Cost* costs = const_cast<Cost*>(cost.data);
  const auto for_each = [&](const auto& visit) {
    for (int row = 0; row < cost.rows; ++row) {
      for (int j = lanes.lane(); j < cost.columns; j += lanes.count()) {
        visit(costs[row * cost.row_stride + j]);
      }
    }
  };
  double minus_largest = 0;
  for_each([&](const Cost& entry) {
    const double size = magnitude(static_cast<double>(entry));
    if (entry < kNone && -size < minus_largest) minus_largest = -size;
  });
  int anywhere = 0;
  lanes.argmin(minus_largest, anywhere);
  const Cost stand_in = static_cast<Cost>(last_resort(-minus_largest, cost.rows));
  for_each([&](Cost& entry) {
    if (entry == kNone) entry = stand_in;
  });
  for (int row = lanes.lane(); row < cost.rows; row += lanes.count()) {
    if (minimum[row] < kNone) continue;
    minimum[row] = stand_in;
    cheapest[row] = 0;
  }
  lanes.sync();
  return stand_in;
}

template <class Cost, class Team>
__global__ void __launch_bounds__(Team::kThreads, 1)
    assign(const AssignmentBatch<Cost> batch, const AssignmentPlan plan, char* workspace) {
  const AssignmentProblem<Cost> problem = problem_of(batch, blockIdx.x);
  const int rows = problem.cost.rows, columns = problem.cost.columns;

  char* in_shared = block_memory + kScratchBytes;
  char* state = plan.workspace ? workspace + blockIdx.x * plan.workspace : in_shared;
  const LaneArrays arrays{reinterpret_cast<int*>(state + plan.state.column_of_row),
                          reinterpret_cast<int*>(state + plan.state.row_of_column),
                          reinterpret_cast<double*>(state + plan.state.v),
                          reinterpret_cast<int*>(state + plan.state.predecessor)};
  Cost* minimum = reinterpret_cast<Cost*>(state + plan.state.minimum);
  int* cheapest = reinterpret_cast<int*>(state + plan.state.cheapest);

  CostMatrix<Cost> cost{problem.cost.data, problem.cost.row_stride, 1, rows, columns};
  const size_t before = kScratchBytes + (plan.workspace ? 0 : plan.state.bytes);
  if (before + sizeof(Cost) * rows * columns <= plan.shared) {
    Cost* copy = reinterpret_cast<Cost*>(block_memory + before);
    copy_costs(problem.cost, copy);
    cost.data = copy;
    cost.row_stride = columns;
    __syncthreads();
  }

  typename Team::Slots slots =
      Team::slots(arrays, reinterpret_cast<double*>(state + plan.state.distance));
  bool may_bid = true;
  {
    WarpLanes lanes;
    LaneColumns<Cost, WarpLanes, typename Team::Slots> by_warp(cost, arrays, slots, lanes);
    for (int row = warp_of_block(); row < rows; row += warps_of_block()) {
      const Nearest nearest = by_warp.row_minimum(row);
      if (lane_of_warp() == 0) {
        minimum[row] = static_cast<Cost>(nearest.value);
        cheapest[row] = nearest.column;
      }
    }
    may_bid = by_warp.may_bid();
  }
  may_bid = __syncthreads_and(may_bid);
  if (!Team::solves()) return;

  typename Team::Lanes lanes = Team::lanes();
  using Columns = LaneColumns<Cost, typename Team::Lanes, typename Team::Slots>;
  ColumnsWithMinima<Columns, Cost> with_minima(Columns(cost, arrays, slots, lanes), minimum,
                                               cheapest, may_bid);
  LapStatus status;
  Cost stand_in = static_cast<Cost>(kInfinity);
  for (bool yields = batch.yields;; yields = false) {
    status = solve(with_minima);
    if (status != LapStatus::kInfeasible || !yields) break;
    stand_in = allow_as_last_resort(cost, minimum, cheapest, lanes);
    with_minima.see(stand_in);
  }

  for (int i = lanes.lane(); i < problem.answers; i += lanes.count()) problem.answer[i] = -1;
  lanes.sync();
  if (status != LapStatus::kOptimal) return;
  for (int row = lanes.lane(); row < rows; row += lanes.count()) {
    const int column = with_minima.column_of(row);
    if (cost.data[row * cost.row_stride + column] == stand_in) continue;
    problem.answer[problem.turned ? column : row] = (problem.turned ? row : column) + problem.shift;
  }
}

}  // namespace detr_fast
