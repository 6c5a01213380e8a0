// One assignment problem of any shape and strides, for the instruction set of the including file.

#pragma once

#include "kernels.h"
#include "simd_strided_columns.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Cost>
inline size_t assignment_bytes_of(int rows, int columns, bool strided) {
  return strided ? StridedColumns<Cost>::bytes(rows, columns)
                 : SimdColumns<Cost>::bytes(rows, columns);
}

inline size_t assignment_bytes(int rows, int columns, size_t cost_bytes, bool strided) {
  const int fewer = rows < columns ? rows : columns, more = rows < columns ? columns : rows;
  return cost_bytes == sizeof(float) ? assignment_bytes_of<float>(fewer, more, strided)
                                     : assignment_bytes_of<double>(fewer, more, strided);
}

// Solves a problem with rows <= columns.
template <class Cost, class Use>
inline LapStatus assign_rows(const CostMatrix<Cost>& cost, Workspace& workspace, const Use& use) {
  const bool strided = cost.column_stride != 1 && cost.rows > 0;
  char* storage = static_cast<char*>(
      workspace.reserve(assignment_bytes_of<Cost>(cost.rows, cost.columns, strided)));
  const auto solve_and_use = [&](auto columns) {
    const LapStatus status = solve(columns);
    if (status == LapStatus::kOptimal) use(columns);
    return status;
  };
  if (strided) return solve_and_use(StridedColumns<Cost>(cost, storage));
  return solve_and_use(
      SimdColumns<Cost>(cost.data, cost.row_stride, cost.rows, cost.columns, storage));
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
