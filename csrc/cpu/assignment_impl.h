// One assignment problem of any shape and strides, for the instruction set of the including file.

#pragma once

#include "kernels.h"
#include "simd_columns.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

inline size_t assignment_bytes(int rows, int columns, size_t cost_bytes, bool copied) {
  const int fewer = rows < columns ? rows : columns, more = rows < columns ? columns : rows;
  const size_t state = cost_bytes == sizeof(float) ? SimdColumns<float>::bytes(fewer, more)
                                                   : SimdColumns<double>::bytes(fewer, more);
  const size_t copy = copied ? cost_bytes * static_cast<size_t>(rows) * columns : 0;
  return (state + 63) / 64 * 64 + copy;
}

// Copies `from` to dense rows, in tiles that fit the first cache.
template <class Cost>
inline void copy_dense(const CostMatrix<Cost>& from, Cost* to) {
  constexpr int kTile = 16;
  for (int i0 = 0; i0 < from.rows; i0 += kTile) {
    const int i1 = i0 + kTile < from.rows ? i0 + kTile : from.rows;
    for (int j0 = 0; j0 < from.columns; j0 += kTile) {
      const int j1 = j0 + kTile < from.columns ? j0 + kTile : from.columns;
      for (int j = j0; j < j1; ++j) {
        for (int i = i0; i < i1; ++i) {
          to[static_cast<int64_t>(i) * from.columns + j] =
              from.data[i * from.row_stride + j * from.column_stride];
        }
      }
    }
  }
}

// Solves a problem with rows <= columns.
template <class Cost, class Use>
inline LapStatus assign_rows(const CostMatrix<Cost>& cost, Workspace& workspace, const Use& use) {
  const bool copied = cost.column_stride != 1;
  const size_t bytes = assignment_bytes(cost.rows, cost.columns, sizeof(Cost), copied);
  char* storage = static_cast<char*>(workspace.reserve(bytes));
  const Cost* rows = cost.data;
  int64_t row_stride = cost.row_stride;
  if (copied) {
    Cost* dense = reinterpret_cast<Cost*>(
        storage + assignment_bytes(cost.rows, cost.columns, sizeof(Cost), false));
    copy_dense(cost, dense);
    rows = dense;
    row_stride = cost.columns;
  }
  SimdColumns<Cost> columns(rows, row_stride, cost.rows, cost.columns, storage);
  const LapStatus status = solve(columns);
  if (status == LapStatus::kOptimal) use(columns);
  return status;
}

template <class Cost>
LapStatus assign(const CostMatrix<Cost>& cost, int64_t* columns_of_rows, Workspace& workspace) {
  for (int i = 0; i < cost.rows; ++i) columns_of_rows[i] = -1;
  if (cost.rows == 0 || cost.columns == 0) return LapStatus::kOptimal;
  if (cost.rows <= cost.columns) {
    return assign_rows(cost, workspace, [&](const auto& columns) {
      for (int i = 0; i < cost.rows; ++i) columns_of_rows[i] = columns.column_of(i);
    });
  }
  const CostMatrix<Cost> transposed{cost.data, cost.column_stride, cost.row_stride, cost.columns,
                                    cost.rows};
  return assign_rows(transposed, workspace, [&](const auto& columns) {
    for (int j = 0; j < cost.columns; ++j) columns_of_rows[columns.column_of(j)] = j;
  });
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
