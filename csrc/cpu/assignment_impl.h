// One assignment problem of any shape and strides, for the instruction set of the including file.

#pragma once

#include "kernels.h"
#include "simd_columns.h"
#include "simd_transpose.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

// The entries between rows of a dense copy: whole vectors, and an odd number of cache lines, or
// entries of one column would share few places in the cache.
template <class Cost>
inline int64_t dense_stride(int columns) {
  constexpr int kLine = 64 / sizeof(Cost);
  return ((static_cast<int64_t>(columns) + kLine - 1) / kLine | 1) * kLine;
}

template <class Cost>
inline size_t assignment_bytes_of(int rows, int columns, bool copied) {
  const size_t state = SimdColumns<Cost>::bytes(rows, columns);
  const size_t copy = copied ? sizeof(Cost) * rows * dense_stride<Cost>(columns) : 0;
  return (state + 63) / 64 * 64 + copy;
}

inline size_t assignment_bytes(int rows, int columns, size_t cost_bytes, bool copied) {
  const int fewer = rows < columns ? rows : columns, more = rows < columns ? columns : rows;
  return cost_bytes == sizeof(float) ? assignment_bytes_of<float>(fewer, more, copied)
                                     : assignment_bytes_of<double>(fewer, more, copied);
}

// Copies to rows of contiguous entries, dense_stride apart.
template <class Cost>
inline void copy_dense(const CostMatrix<Cost>& from, Cost* to) {
  const int64_t to_stride = dense_stride<Cost>(from.columns);
  constexpr int kTile = Simd<Cost>::kLanes;
  for (int j = 0; j < from.columns; j += kTile) {
    const int count = from.columns - j < kTile ? from.columns - j : kTile;
    for (int i = 0; i < from.rows; i += kTile) {
      const int length = from.rows - i < kTile ? from.rows - i : kTile;
      const Cost* corner = from.data + i * from.row_stride + j * from.column_stride;
      Cost* to_corner = to + i * to_stride + j;
      if (from.row_stride == 1) {
        // The columns after these lie on too many lines for the hardware to foresee: measured on 64
        // problems of 100 x 900, a third of the time.
        for (int k = 0; k < kTile; ++k) {
          __builtin_prefetch(corner + (k + kTile) * from.column_stride);
        }
        transpose_block(corner, from.column_stride, count, length, to_corner, to_stride);
        continue;
      }
      for (int k = 0; k < length; ++k) {
        for (int l = 0; l < count; ++l) {
          to_corner[k * to_stride + l] = corner[k * from.row_stride + l * from.column_stride];
        }
      }
    }
  }
}

// Solves a problem with rows <= columns.
template <class Cost, class Use>
inline LapStatus assign_rows(const CostMatrix<Cost>& cost, Workspace& workspace, const Use& use) {
  const bool copied = cost.column_stride != 1 && cost.rows > 0;
  const size_t bytes = assignment_bytes_of<Cost>(cost.rows, cost.columns, copied);
  char* storage = static_cast<char*>(workspace.reserve(bytes));
  const Cost* rows = cost.data;
  int64_t row_stride = cost.row_stride;
  if (copied) {
    Cost* dense = reinterpret_cast<Cost*>(
        storage + assignment_bytes_of<Cost>(cost.rows, cost.columns, false));
    copy_dense(cost, dense);
    rows = dense;
    row_stride = dense_stride<Cost>(cost.columns);
  }
  SimdColumns<Cost> columns(rows, row_stride, cost.rows, cost.columns, storage);
  const LapStatus status = solve(columns);
  if (status == LapStatus::kOptimal) use(columns);
  return status;
}

// Calls use(columns, oriented) with the solved columns of the matrix that has the smaller side as
// rows.
template <class Cost, class Use>
inline LapStatus assign_and_use(const CostMatrix<Cost>& cost, int64_t* columns_of_rows,
                                Workspace& workspace, const Use& use) {
  for (int i = 0; i < cost.rows; ++i) columns_of_rows[i] = -1;
  if (cost.rows <= cost.columns) {
    return assign_rows(cost, workspace, [&](const auto& columns) {
      for (int i = 0; i < cost.rows; ++i) columns_of_rows[i] = columns.column_of(i);
      use(columns, cost);
    });
  }
  const CostMatrix<Cost> transposed{cost.data, cost.column_stride, cost.row_stride, cost.columns,
                                    cost.rows};
  return assign_rows(transposed, workspace, [&](const auto& columns) {
    for (int j = 0; j < cost.columns; ++j) columns_of_rows[columns.column_of(j)] = j;
    use(columns, transposed);
  });
}

template <class Cost>
LapStatus assign(const CostMatrix<Cost>& cost, int64_t* columns_of_rows, Workspace& workspace) {
  return assign_and_use(cost, columns_of_rows, workspace, [](const auto&, const auto&) {});
}

// The gap is the sum of what the duals leave of the assigned entries: those of free columns are 0.
template <class Cost>
LapStatus certify(const CostMatrix<Cost>& cost, const Certificate& certificate,
                  Workspace& workspace) {
  const auto use = [&](const auto& columns, const CostMatrix<Cost>& oriented) {
    const bool as_given = cost.rows <= cost.columns;
    double* u = as_given ? certificate.row_duals : certificate.column_duals;
    double* v = as_given ? certificate.column_duals : certificate.row_duals;
    for (int j = 0; j < oriented.columns; ++j) v[j] = columns.v(j);
    *certificate.gap = 0;
    for (int i = 0; i < oriented.rows; ++i) {
      u[i] = kInfinity;
      for (int j = 0; j < oriented.columns; ++j) {
        const double reduced = oriented.at(i, j) - v[j];
        u[i] = reduced < u[i] ? reduced : u[i];
      }
      const int j = columns.column_of(i);
      *certificate.gap += (oriented.at(i, j) - v[j]) - u[i];
    }
  };
  return assign_and_use(cost, certificate.columns_of_rows, workspace, use);
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
