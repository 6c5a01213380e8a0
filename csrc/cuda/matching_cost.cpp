// matching_cost on CUDA: the contract is in detr_fast/ops/matching_cost.py.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "matching_inputs.h"

namespace detr_fast {
namespace {

template <class Cost>
void write_costs(const MatchingInputs& inputs, at::Tensor& cost) {
  const Launch launch = current_launch();
  inputs.for_each_launch([&](int64_t first, int64_t count) {
    launch_matching_cost(inputs.batch<Cost>(first, count, cost),
                         inputs.image_targets(first, count), launch);
  });
}

at::Tensor matching_cost(const at::Tensor& logits, const at::Tensor& boxes,
                         const at::Tensor& labels, const at::Tensor& target_boxes,
                         const at::Tensor& offsets, const std::optional<at::Tensor>& counts,
                         const std::optional<at::Tensor>& extra_cost, c10::string_view class_cost,
                         double weight_class, double weight_bbox, double weight_giou, double alpha,
                         double gamma, double eps) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const MatchingInputs inputs({logits, boxes, labels, target_boxes, offsets, counts, extra_cost,
                               class_cost, weight_class, weight_bbox, weight_giou, alpha, gamma,
                               eps},
                              1);
  at::Tensor cost =
      at::empty({inputs.sets(), inputs.targets(), inputs.queries()}, inputs.options());
  if (cost.numel() == 0) return cost;
  if (inputs.in_double()) {
    write_costs<double>(inputs, cost);
  } else {
    write_costs<float>(inputs, cost);
  }
  return cost;
}

TORCH_LIBRARY_IMPL(detr_fast, CUDA, m) {
  m.impl("matching_cost", matching_cost);
}

}  // namespace
}  // namespace detr_fast
