// Batches of assignment problems on the GPU: what they are, and how much memory a launch gives
// them. For the host and for nvcc; no torch headers. The kernel is in assign_kernel.h.

#pragma once

#include <cstddef>
#include <cstdint>

#include "../lap.h"
#include "launch.h"

namespace detr_fast {

// A problem as the kernel solves it. Its rows are the caller's rows, or where these are more than
// the columns, the caller's columns: then it is `turned`.
template <class Cost>
struct AssignmentProblem {
  CostMatrix<Cost> cost;  // rows <= columns
  bool turned;
  int64_t* answer;  // for each of the caller's rows its column plus `shift`, -1 for none
  int answers;      // the caller's rows, and room behind them that gets -1
  int shift;
};

// (count, rows, columns), with any strides.
template <class Cost>
struct CostTensor {
  const Cost* data;
  long long problem_stride, row_stride, column_stride;
};

template <class Cost>
struct AssignmentBatch {
  int64_t count;

  // The problems, written on the device by an earlier launch; null for those of a tensor.
  const AssignmentProblem<Cost>* problems;
  // Whether a problem that +inf leaves without a full matching, whose costs are overwritten then,
  // is matched as far as possible.
  bool yields;

  // A tensor of problems, for those with no more rows than columns and for the others: twice the
  // same, or where costs stay in global memory, with dense rows and with dense columns.
  CostTensor<Cost> wide, tall;
  int rows, columns;
  const int64_t* sizes;  // (count, 2), dense, or null: the rows and columns of each problem
  int64_t* answer;       // (count, rows)
};

// What is known on the host of the problems of a batch.
struct AssignmentExtent {
  int64_t count;
  int rows, columns;                   // at most, and rows <= columns
  size_t largest_cost, smallest_cost;  // bytes of a problem's costs
};

// Where the state of a problem lies: offsets in bytes.
struct AssignmentLayout {
  size_t v, distance, minimum, predecessor, row_of_column, column_of_row, cheapest;
  size_t bytes;  // a multiple of 16
};

// How a batch is solved: with a block of threads for each problem. The shared memory of a block
// holds kScratchBytes, then the state unless that is in the workspace, then the costs if there is
// room.
struct AssignmentPlan {
  int slots;         // columns of each lane of the warp that solves; 0: the whole block solves
  AssignmentLayout state;
  size_t shared;     // bytes of a block's shared memory
  size_t workspace;  // bytes of a block's global memory: the state, if it has to be there
};

// Slots for which there is a kernel.
constexpr int kSlots[] = {4, 10, 20, 32};
constexpr size_t kScratchBytes = 1024;

AssignmentPlan plan_assignment(const AssignmentExtent& extent, size_t entry_bytes,
                               const Card& card);

// Whether every problem's costs are copied into shared memory, so that their strides do not matter.
inline bool copies_all(const AssignmentPlan& plan, const AssignmentExtent& extent) {
  return plan.workspace == 0 &&
         kScratchBytes + plan.state.bytes + extent.largest_cost <= plan.shared;
}

// `workspace` has plan.workspace bytes for each problem, aligned for double.
void launch_assignment(const AssignmentBatch<float>& batch, const AssignmentPlan& plan,
                       void* workspace, const Launch& launch);
void launch_assignment(const AssignmentBatch<double>& batch, const AssignmentPlan& plan,
                       void* workspace, const Launch& launch);

}  // namespace detr_fast
