// set_matching on the CPU: the contract is in detr_fast/ops/set_matching.py. One parallel loop over
// the images of all sets; the costs of an image are written where the solver reads them, queries
// contiguous, and forgotten.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels.h"
#include "matching_inputs.h"
#include "matching_operations.h"
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

constexpr double kNone = std::numeric_limits<double>::infinity();

// What set_matching says of `non_finite_cost`.
CostRange range_for(double non_finite_cost, at::ScalarType type) {
  if (non_finite_cost == kNone) return {kLargestAllowed, kNone};
  return {type == at::kDouble ? std::numeric_limits<double>::max()
                              : std::numeric_limits<float>::max(),
          non_finite_cost};
}

// Matches as many rows as the forbidden pairs, those of cost +inf, allow. `cost` is dense and is
// changed.
template <class T>
void assign_as_many_as_possible(T* cost, int rows, int columns, int64_t* columns_of_rows,
                                Workspace& memory) {
  const int64_t entries = static_cast<int64_t>(rows) * columns;
  double largest = 0;
  for (int64_t i = 0; i < entries; ++i) {
    if (std::isfinite(cost[i])) largest = std::max(largest, static_cast<double>(std::abs(cost[i])));
  }
  const T stand_in = static_cast<T>(last_resort(largest, std::min(rows, columns)));
  for (int64_t i = 0; i < entries; ++i) {
    if (!std::isfinite(cost[i])) cost[i] = stand_in;
  }
  assignment_kernel<T>()({cost, columns, 1, rows, columns}, columns_of_rows, memory);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t j = columns_of_rows[i];
    if (j >= 0 && cost[i * columns + j] == stand_in) columns_of_rows[i] = -1;
  }
}

template <class T>
void match(const MatchingInputs& inputs, const MatchingOptions& options, at::Tensor& answer) {
  const int64_t images = inputs.images(), targets = inputs.targets();
  const int64_t groups = inputs.groups(), queries = inputs.queries_of_group();
  const CpuKernels& kernels = cpu_kernels();
  const size_t array_bytes = kernels.matching_cost_bytes(queries, sizeof(T));
  for (int64_t b = 0; b < images; ++b) {
    const int64_t count = inputs.targets_of(b);
    TORCH_CHECK_VALUE(std::max(count, queries) < (1 << 30), "image ", b, " has ", count,
                      " targets and ", queries, " queries: at most 2^30 can be matched.");
  }
  // Each thread begins with its largest problem, after which it allocates nothing.
  const std::vector<int64_t> order = largest_first(
      inputs.sets() * groups * images, [&](int64_t k) { return inputs.targets_of(k % images); });
  // The softmax of a query costs about a quarter of as many matrix entries as there are classes.
  int64_t per_query = targets;
  for (int64_t b = 0; b < images && !options.focal; ++b) {
    per_query += inputs.targets_of(b) > 0 ? inputs.classes() / 4 : 0;
  }
  const int64_t entries = inputs.sets() * inputs.queries() * per_query;
  int64_t* queries_of_targets = answer.mutable_data_ptr<int64_t>();
  for_each_problem(
      order.size(), entries, [] { return Memory(); }, [&](int64_t k, Memory& memory) {
        const int64_t row = order[k] / images, b = order[k] % images;
        const int64_t group = row % groups;
        const int count = static_cast<int>(inputs.targets_of(b));
        if (count == 0) return;
        T* cost = static_cast<T*>(memory.costs.reserve(sizeof(T) * count * queries));
        matching_cost_kernel<T>()(inputs.image<T>(row / groups, group, b), options, cost,
                                  memory.query_arrays.reserve(array_bytes));
        int64_t* matched = queries_of_targets + row * targets + inputs.first(b);
        const int columns = static_cast<int>(queries);
        const LapStatus status =
            assignment_kernel<T>()({cost, columns, 1, count, columns}, matched, memory.solver);
        if (status == LapStatus::kInfeasible) {
          assign_as_many_as_possible(cost, count, columns, matched, memory.solver);
        }
        for (int t = 0; t < count; ++t) matched[t] += matched[t] < 0 ? 0 : group * queries;
      });
}

}  // namespace

at::Tensor set_matching(const at::Tensor& logits, const at::Tensor& boxes, const at::Tensor& labels,
                        const at::Tensor& target_boxes, const at::Tensor& offsets,
                        const std::optional<at::Tensor>& counts,
                        const std::optional<at::Tensor>& extra_cost, c10::string_view class_cost,
                        double weight_class, double weight_bbox, double weight_giou, double alpha,
                        double gamma, double eps, int64_t groups, double non_finite_cost) {
  const MatchingInputs inputs(
      {logits, boxes, labels, target_boxes, offsets, counts, extra_cost}, groups);
  const MatchingOptions options =
      matching_options(class_cost, weight_class, weight_bbox, weight_giou, alpha, gamma, eps,
                       range_for(non_finite_cost, inputs.type()));
  const std::array<int64_t, 2> shape{inputs.sets() * groups, inputs.targets()};
  const auto of_indices = inputs.options().dtype(at::kLong);
  at::Tensor answer =
      inputs.has_room() ? at::full(shape, -1, of_indices) : at::empty(shape, of_indices);
  if (inputs.type() == at::kDouble) {
    match<double>(inputs, options, answer);
  } else {
    match<float>(inputs, options, answer);
  }
  return answer;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("set_matching", set_matching);
}

}  // namespace detr_fast
