// linear_assignment on CUDA: the contract is in detr_fast/ops/assignment.py. Nothing here waits for
// the device.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "assign.h"

namespace detr_fast {
namespace {

// The sizes where the kernel reads them; checked if that needs no waiting.
at::Tensor on_device(const at::Tensor& sizes, const at::Tensor& cost) {
  TORCH_CHECK_VALUE(sizes.dim() == 2 && sizes.size(0) == cost.size(0) && sizes.size(1) == 2 &&
                        sizes.scalar_type() == at::kLong,
                    "sizes has shape ", sizes.sizes(), " and dtype ", sizes.scalar_type(),
                    ": use int64 (", cost.size(0), ", 2).");
  TORCH_CHECK_VALUE(sizes.device() == cost.device() || sizes.is_cpu(), "sizes is on ",
                    sizes.device(), " and cost on ", cost.device(),
                    ": use the device of cost, or the CPU.");
  if (sizes.is_cpu()) {
    const auto given = sizes.accessor<int64_t, 2>();
    for (int64_t b = 0; b < cost.size(0); ++b) {
      const int64_t n = given[b][0], m = given[b][1];
      TORCH_CHECK_VALUE(0 <= n && n <= cost.size(1) && 0 <= m && m <= cost.size(2), "sizes[", b,
                        "] is (", n, ", ", m, "), but the cost matrices are ", cost.size(1), " x ",
                        cost.size(2), ": give each problem a size within them.");
    }
  }
  return sizes.to(cost.device(), /*non_blocking=*/true).contiguous();
}

template <class Cost>
CostTensor<Cost> view(const at::Tensor& cost) {
  return {cost.const_data_ptr<Cost>(), cost.stride(0), cost.stride(1), cost.stride(2)};
}

at::Tensor with_dense_rows(const at::Tensor& cost) {
  return cost.stride(2) == 1 ? cost : cost.contiguous();
}

at::Tensor with_dense_columns(const at::Tensor& cost) {
  return with_dense_rows(cost.transpose(1, 2)).transpose(1, 2);
}

template <class Cost>
void assign_all(const at::Tensor& cost, const at::Tensor& sizes, at::Tensor& answer) {
  const int rows = static_cast<int>(cost.size(1)), columns = static_cast<int>(cost.size(2));
  const Launch launch = current_launch();
  const size_t entries = sizeof(Cost) * cost.size(1) * cost.size(2);
  const AssignmentExtent extent{cost.size(0), std::min(rows, columns), std::max(rows, columns),
                                entries, sizes.defined() ? 0 : entries};
  const AssignmentPlan plan = plan_assignment(extent, sizeof(Cost), card(launch.device));

  at::Tensor wide = cost, tall = cost;
  if (!copies_all(plan, extent)) {
    if (rows <= columns || sizes.defined()) wide = with_dense_rows(cost);
    if (rows > columns || sizes.defined()) tall = with_dense_columns(cost);
  }
  AssignmentBatch<Cost> batch{};
  batch.count = cost.size(0);
  batch.wide = view<Cost>(wide);
  batch.tall = view<Cost>(tall);
  batch.rows = rows;
  batch.columns = columns;
  batch.sizes = sizes.defined() ? sizes.const_data_ptr<int64_t>() : nullptr;
  batch.answer = answer.mutable_data_ptr<int64_t>();
  const at::Tensor workspace = at::empty(cost.size(0) * static_cast<int64_t>(plan.workspace),
                                         cost.options().dtype(at::kByte));
  launch_assignment(batch, plan, workspace.mutable_data_ptr(), launch);
}

at::Tensor linear_assignment(const at::Tensor& cost, const std::optional<at::Tensor>& sizes) {
  TORCH_CHECK_VALUE(cost.dim() == 3, "cost has shape ", cost.sizes(), ": use (B, N, M).");
  TORCH_CHECK_VALUE(
      cost.size(0) < std::numeric_limits<int>::max() &&
          std::max(cost.size(1), cost.size(2)) < std::numeric_limits<int>::max() / 2,
      "cost has shape ", cost.sizes(),
      ": there can be at most 2^31 problems with at most 2^30 rows or columns each.");
  const c10::cuda::CUDAGuard guard(cost.device());
  at::Tensor answer = at::empty(cost.sizes().slice(0, 2), cost.options().dtype(at::kLong));
  const at::Tensor extents = sizes ? on_device(*sizes, cost) : at::Tensor();
  if (answer.numel() == 0) return answer;
  if (cost.scalar_type() == at::kDouble) {
    assign_all<double>(cost, extents, answer);
  } else {
    assign_all<float>(cost.to(at::kFloat), extents, answer);
  }
  return answer;
}

TORCH_LIBRARY_IMPL(detr_fast, CUDA, m) {
  m.impl("linear_assignment", linear_assignment);
}

}  // namespace
}  // namespace detr_fast
