// linear_assignment on the CPU: the contract is in detr_fast/ops/assignment.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace detr_fast {
namespace {

struct Size {
  int rows, columns;
  int64_t entries() const { return static_cast<int64_t>(rows) * columns; }

  // In entries of a cost that has to be computed. With columns to spare, or rows, most entries are
  // looked at once, ten in the time of one such: 64 problems of 7 x 300 are not worth two threads.
  int64_t work() const {
    const bool wide = std::max(rows, columns) / 2 >= std::min(rows, columns);
    return wide ? entries() / 10 : entries();
  }
};

std::vector<Size> sizes_of(const at::Tensor& cost, const std::optional<at::Tensor>& sizes) {
  const int64_t rows = cost.size(1), columns = cost.size(2);
  TORCH_CHECK_VALUE(
      std::max(rows, columns) < std::numeric_limits<int>::max() / 2,
      "cost has shape ", cost.sizes(), ": one problem can have at most 2^30 rows or columns.");
  std::vector<Size> result(cost.size(0), {static_cast<int>(rows), static_cast<int>(columns)});
  if (!sizes) return result;
  TORCH_CHECK_VALUE(sizes->dim() == 2 && sizes->size(0) == cost.size(0) && sizes->size(1) == 2 &&
                        sizes->scalar_type() == at::kLong,
                    "sizes has shape ", sizes->sizes(), " and dtype ", sizes->scalar_type(),
                    ": use int64 (", cost.size(0), ", 2).");
  const at::Tensor on_cpu = sizes->cpu();
  const auto given = on_cpu.accessor<int64_t, 2>();
  for (int64_t b = 0; b < cost.size(0); ++b) {
    const int64_t n = given[b][0], m = given[b][1];
    TORCH_CHECK_VALUE(0 <= n && n <= rows && 0 <= m && m <= columns, "sizes[", b, "] is (", n, ", ",
                      m, "), but the cost matrices are ", rows, " x ", columns,
                      ": give each problem a size within them.");
    result[b] = {static_cast<int>(n), static_cast<int>(m)};
  }
  return result;
}

template <class Cost>
void assign_all(const at::Tensor& cost, const std::vector<Size>& sizes, at::Tensor& answer) {
  const CpuKernels& kernels = cpu_kernels();
  LapStatus (*assign)(const CostMatrix<Cost>&, int64_t*, Workspace&);
  if constexpr (std::is_same_v<Cost, float>) {
    assign = kernels.assign_float;
  } else {
    assign = kernels.assign_double;
  }

  const std::vector<int64_t> order =
      largest_first(sizes.size(), [&](int64_t b) { return sizes[b].entries(); });
  int64_t work = 0;
  size_t bytes = 0;
  for (const Size& size : sizes) {
    const int64_t along = size.rows <= size.columns ? cost.stride(2) : cost.stride(1);
    work += size.work();
    bytes = std::max(
        bytes, kernels.assignment_bytes(size.rows, size.columns, sizeof(Cost), along != 1));
  }

  const Cost* data = cost.const_data_ptr<Cost>();
  int64_t* columns_of_rows = answer.mutable_data_ptr<int64_t>();
  const auto make_workspace = [&] {
    Workspace workspace;
    workspace.reserve(bytes);
    return workspace;
  };
  for_each_problem(sizes.size(), work, make_workspace, [&](int64_t k, Workspace& workspace) {
    const int64_t b = order[k];
    const CostMatrix<Cost> matrix{data + b * cost.stride(0), cost.stride(1), cost.stride(2),
                                  sizes[b].rows, sizes[b].columns};
    assign(matrix, columns_of_rows + b * cost.size(1), workspace);
  });
}

at::Tensor linear_assignment(const at::Tensor& cost, const std::optional<at::Tensor>& sizes) {
  TORCH_CHECK_VALUE(cost.dim() == 3, "cost has shape ", cost.sizes(), ": use (B, N, M).");
  const std::vector<Size> extents = sizes_of(cost, sizes);
  const auto options = cost.options().dtype(at::kLong);
  // Rows beyond the size of their problem are written by nobody else.
  at::Tensor answer = sizes ? at::full(cost.sizes().slice(0, 2), -1, options)
                            : at::empty(cost.sizes().slice(0, 2), options);
  if (cost.scalar_type() == at::kDouble) {
    assign_all<double>(cost, extents, answer);
  } else {
    assign_all<float>(cost.to(at::kFloat), extents, answer);
  }
  return answer;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("linear_assignment", linear_assignment);
}

}  // namespace
}  // namespace detr_fast
