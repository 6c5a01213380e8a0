// set_matching on CUDA: the contract is in detr_fast/ops/set_matching.py. Two launches for up to
// kMostImages images: one writes the costs and the problems, one solves these. Grids and memory
// depend on shapes and offsets alone, and nothing waits for the device, so a CUDA graph can capture
// both and match other predictions, targets and counts when it is replayed.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "matching_inputs.h"

namespace detr_fast {
namespace {

constexpr double kNone = std::numeric_limits<double>::infinity();

template <class Cost>
void match(const MatchingInputs& inputs, double non_finite_cost, at::Tensor& answer) {
  const Launch launch = current_launch();
  const auto bytes = inputs.options().dtype(at::kByte);
  const int64_t queries = inputs.queries_of_group();
  at::Tensor cost =
      at::empty({inputs.sets(), inputs.targets(), inputs.queries()}, inputs.options());
  inputs.for_each_launch([&](int64_t first, int64_t images) {
    const int64_t problems = inputs.sets() * inputs.groups() * images;
    const at::Tensor memory_of_problems =
        at::empty(problems * static_cast<int64_t>(sizeof(AssignmentProblem<Cost>)), bytes);
    auto* of_launch =
        reinterpret_cast<AssignmentProblem<Cost>*>(memory_of_problems.mutable_data_ptr());

    MatchingBatch<Cost> batch = inputs.batch<Cost>(first, images, cost);
    batch.range = non_finite_cost == kNone
                      ? CostRange{kLargestAllowed, kNone}
                      : CostRange{std::numeric_limits<Cost>::max(), non_finite_cost};
    batch.problems = of_launch;
    batch.answer = answer.mutable_data_ptr<int64_t>();
    launch_matching_cost(batch, inputs.image_targets(first, images), launch);

    AssignmentBatch<Cost> assignment{};
    assignment.count = problems;
    assignment.problems = of_launch;
    assignment.yields = non_finite_cost == kNone;
    const int64_t most = inputs.most(first, images), fewest = inputs.fewest(first, images);
    const AssignmentExtent extent{
        problems, static_cast<int>(std::min(most, queries)),
        static_cast<int>(std::max(most, queries)), sizeof(Cost) * most * queries,
        sizeof(Cost) * fewest * queries};
    const AssignmentPlan plan = plan_assignment(extent, sizeof(Cost), card(launch.device));
    const at::Tensor workspace =
        at::empty(problems * static_cast<int64_t>(plan.workspace), bytes);
    launch_assignment(assignment, plan, workspace.mutable_data_ptr(), launch);
  });
}

at::Tensor set_matching(const at::Tensor& logits, const at::Tensor& boxes, const at::Tensor& labels,
                        const at::Tensor& target_boxes, const at::Tensor& offsets,
                        const std::optional<at::Tensor>& counts,
                        const std::optional<at::Tensor>& extra_cost, c10::string_view class_cost,
                        double weight_class, double weight_bbox, double weight_giou, double alpha,
                        double gamma, double eps, int64_t groups, double non_finite_cost) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const MatchingInputs inputs({logits, boxes, labels, target_boxes, offsets, counts, extra_cost,
                               class_cost, weight_class, weight_bbox, weight_giou, alpha, gamma,
                               eps},
                              groups);
  const auto of_indices = inputs.options().dtype(at::kLong);
  at::Tensor answer = at::empty({inputs.sets() * groups, inputs.targets()}, of_indices);
  if (inputs.queries() == 0) return answer.fill_(-1);
  if (answer.numel() == 0) return answer;
  if (inputs.in_double()) {
    match<double>(inputs, non_finite_cost, answer);
  } else {
    match<float>(inputs, non_finite_cost, answer);
  }
  return answer;
}

TORCH_LIBRARY_IMPL(detr_fast, CUDA, m) {
  m.impl("set_matching", set_matching);
}

}  // namespace
}  // namespace detr_fast
