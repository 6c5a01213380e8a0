// matching_cost on the CPU: the contract is in detr_fast/ops/matching_cost.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>

#include "kernels.h"
#include "matching_inputs.h"
#include "parallel.h"

namespace detr_fast {
namespace {

template <class T>
void write_costs(const MatchingInputs& inputs, const MatchingOptions& options, at::Tensor& cost) {
  const int64_t images = inputs.images(), queries = inputs.queries(), targets = inputs.targets();
  const size_t bytes = cpu_kernels().matching_cost_bytes(queries, sizeof(T));
  const auto make_workspace = [&] {
    Workspace workspace;
    workspace.reserve(bytes);
    return workspace;
  };
  const std::vector<int64_t> order = largest_first(
      inputs.sets() * images, [&](int64_t k) { return inputs.targets_of(k % images); });
  T* costs = cost.mutable_data_ptr<T>();
  for_each_problem(order.size(), cost.numel(), make_workspace, [&](int64_t k, Workspace& storage) {
    const int64_t set = order[k] / images, b = order[k] % images;
    if (inputs.targets_of(b) == 0) return;
    matching_cost_kernel<T>()(inputs.image<T>(set, 0, b), options,
                              costs + (set * targets + inputs.first(b)) * queries,
                              storage.reserve(bytes));
  });
}

at::Tensor matching_cost(const at::Tensor& logits, const at::Tensor& boxes,
                         const at::Tensor& labels, const at::Tensor& target_boxes,
                         const at::Tensor& offsets, const std::optional<at::Tensor>& counts,
                         const std::optional<at::Tensor>& extra_cost, c10::string_view class_cost,
                         double weight_class, double weight_bbox, double weight_giou, double alpha,
                         double gamma, double eps) {
  const MatchingInputs inputs(
      {logits, boxes, labels, target_boxes, offsets, counts, extra_cost}, 1);
  const MatchingOptions options = matching_options(class_cost, weight_class, weight_bbox,
                                                   weight_giou, alpha, gamma, eps);
  const std::array<int64_t, 3> shape{inputs.sets(), inputs.targets(), inputs.queries()};
  at::Tensor cost = inputs.has_room() ? at::zeros(shape, inputs.options())
                                      : at::empty(shape, inputs.options());
  if (inputs.type() == at::kDouble) {
    write_costs<double>(inputs, options, cost);
  } else {
    write_costs<float>(inputs, options, cost);
  }
  return cost;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("matching_cost", matching_cost);
}

}  // namespace
}  // namespace detr_fast
