// certified_assignment on the CPU: the contract is in detr_fast/ops/certificate.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "kernels.h"
#include "parallel.h"

namespace detr_fast {
namespace {

struct Answers {
  at::Tensor columns_of_rows, row_duals, column_duals, gap;
};

template <class Cost>
void certify_all(const at::Tensor& cost, Answers& answers) {
  const CpuKernels& kernels = cpu_kernels();
  const auto rows = static_cast<int>(cost.size(1)), columns = static_cast<int>(cost.size(2));
  const int64_t along = rows <= columns ? cost.stride(2) : cost.stride(1);
  const size_t bytes = kernels.assignment_bytes(rows, columns, sizeof(Cost), along != 1);
  const Cost* data = cost.const_data_ptr<Cost>();
  int64_t* columns_of_rows = answers.columns_of_rows.mutable_data_ptr<int64_t>();
  double* row_duals = answers.row_duals.mutable_data_ptr<double>();
  double* column_duals = answers.column_duals.mutable_data_ptr<double>();
  double* gap = answers.gap.mutable_data_ptr<double>();
  const auto make_workspace = [&] {
    Workspace workspace;
    workspace.reserve(bytes);
    return workspace;
  };
  const auto certify = [&](int64_t b, Workspace& workspace) {
    const CostMatrix<Cost> matrix{data + b * cost.stride(0), cost.stride(1), cost.stride(2), rows,
                                  columns};
    const Certificate certificate{columns_of_rows + b * rows, row_duals + b * rows,
                                  column_duals + b * columns, gap + b};
    if constexpr (std::is_same_v<Cost, float>) {
      kernels.certify_float(matrix, certificate, workspace);
    } else {
      kernels.certify_double(matrix, certificate, workspace);
    }
  };
  for_each_problem(cost.size(0), cost.numel(), make_workspace, certify);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> certified_assignment(
    const at::Tensor& cost) {
  TORCH_CHECK_VALUE(cost.dim() == 3, "cost has shape ", cost.sizes(), ": use (B, N, M).");
  const int64_t batch = cost.size(0), rows = cost.size(1), columns = cost.size(2);
  TORCH_CHECK_VALUE(std::max(rows, columns) < std::numeric_limits<int>::max() / 2,
                    "cost has shape ", cost.sizes(),
                    ": one problem can have at most 2^30 rows or columns.");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto options = cost.options().dtype(at::kDouble);
  Answers answers{at::empty({batch, rows}, cost.options().dtype(at::kLong)),
                  at::full({batch, rows}, nan, options), at::full({batch, columns}, nan, options),
                  at::full({batch}, nan, options)};
  if (cost.scalar_type() == at::kDouble) {
    certify_all<double>(cost, answers);
  } else {
    certify_all<float>(cost.to(at::kFloat), answers);
  }
  return {answers.columns_of_rows, answers.row_duals, answers.column_duals, answers.gap};
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("certified_assignment", certified_assignment);
}

}  // namespace
}  // namespace detr_fast
