// set_matching on the CPU: the contract is in detr_fast/ops/set_matching.py. One parallel loop over
// the images of all sets; the costs of an image are written where the solver reads them, queries
// contiguous, and forgotten.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "kernels.h"
#include "matching_inputs.h"
#include "parallel.h"

namespace detr_fast {
namespace {

template <class T>
auto assignment_kernel() {
  if constexpr (std::is_same_v<T, float>) {
    return cpu_kernels().assign_float;
  } else {
    return cpu_kernels().assign_double;
  }
}

struct Memory {
  Workspace query_arrays, costs, solver;
};

template <class T>
void match(const MatchingInputs& inputs, const MatchingOptions& options, T non_finite_cost,
           at::Tensor& answer) {
  const int64_t images = inputs.images(), queries = inputs.queries(), targets = inputs.targets();
  const CpuKernels& kernels = cpu_kernels();
  const size_t array_bytes = kernels.matching_cost_bytes(queries, sizeof(T));
  int64_t most_targets = 0;
  size_t solver_bytes = 0;
  for (int64_t b = 0; b < images; ++b) {
    const int64_t count = inputs.targets_of(b);
    TORCH_CHECK_VALUE(std::max(count, queries) < (1 << 30), "image ", b, " has ", count,
                      " targets and ", queries, " queries: at most 2^30 can be matched.");
    most_targets = std::max(most_targets, count);
    solver_bytes = std::max(solver_bytes, kernels.assignment_bytes(
                                              static_cast<int>(count), static_cast<int>(queries),
                                              sizeof(T), count > queries));
  }
  const size_t cost_bytes = sizeof(T) * most_targets * queries;
  const auto make_memory = [&] {
    Memory memory;
    memory.query_arrays.reserve(array_bytes);
    memory.costs.reserve(cost_bytes);
    memory.solver.reserve(solver_bytes);
    return memory;
  };
  const std::vector<int64_t> order = largest_first(
      inputs.sets() * images, [&](int64_t k) { return inputs.targets_of(k % images); });
  const int64_t entries = inputs.sets() * targets * queries;
  int64_t* queries_of_targets = answer.mutable_data_ptr<int64_t>();
  for_each_problem(order.size(), entries, make_memory, [&](int64_t k, Memory& memory) {
    const int64_t set = order[k] / images, b = order[k] % images;
    const int64_t count = inputs.targets_of(b);
    if (count == 0) return;
    T* cost = static_cast<T*>(memory.costs.reserve(cost_bytes));
    matching_cost_kernel<T>()(inputs.image<T>(set, b), options, cost,
                              memory.query_arrays.reserve(array_bytes));
    for (int64_t i = 0; i < count * queries; ++i) {
      if (!std::isfinite(cost[i])) cost[i] = non_finite_cost;
    }
    const CostMatrix<T> matrix{cost, queries, 1, static_cast<int>(count),
                               static_cast<int>(queries)};
    assignment_kernel<T>()(matrix, queries_of_targets + set * targets + inputs.first(b),
                           memory.solver);
  });
}

at::Tensor set_matching(const at::Tensor& logits, const at::Tensor& boxes, const at::Tensor& labels,
                        const at::Tensor& target_boxes, const at::Tensor& offsets,
                        c10::string_view class_cost, double weight_class, double weight_bbox,
                        double weight_giou, double alpha, double gamma, double eps,
                        double non_finite_cost) {
  const MatchingInputs inputs(logits, boxes, labels, target_boxes, offsets);
  const MatchingOptions options = matching_options(
      std::string_view(class_cost.data(), class_cost.size()), weight_class, weight_bbox,
      weight_giou, alpha, gamma, eps);
  at::Tensor answer =
      at::empty({inputs.sets(), inputs.targets()}, inputs.options().dtype(at::kLong));
  if (inputs.type() == at::kDouble) {
    match<double>(inputs, options, non_finite_cost, answer);
  } else {
    match<float>(inputs, options, static_cast<float>(non_finite_cost), answer);
  }
  return answer;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("set_matching", set_matching);
}

}  // namespace
}  // namespace detr_fast
