// image_matching on the CPU: the contract is in detr_fast/ops/image_matching.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "matching_operations.h"

namespace detr_fast {
namespace {

using Lists = std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>>;

bool regular(const at::Tensor& logits, const at::Tensor& boxes, at::TensorList labels,
             int64_t groups) {
  if (logits.dim() != 3 || boxes.dim() != 3 || !boxes.is_cpu()) return false;
  const int64_t images = logits.size(0), queries = logits.size(1);
  if (boxes.size(0) != images || boxes.size(1) != queries || boxes.size(2) != 4) return false;
  if (static_cast<int64_t>(labels.size()) != images || queries % groups != 0) return false;
  for (const at::Tensor& own : labels) {
    if (own.numel() > queries / groups) return false;
  }
  return at::isFloatingType(logits.scalar_type()) && at::isFloatingType(boxes.scalar_type());
}

Lists image_matching(const at::Tensor& logits, const at::Tensor& boxes, at::TensorList labels,
                     at::TensorList target_boxes, int64_t num_classes, c10::string_view class_cost,
                     double weight_class, double weight_bbox, double weight_giou, double alpha,
                     double gamma, double eps, int64_t groups, double non_finite_cost) {
  if (!regular(logits, boxes, labels, groups)) return {};
  const auto packed = pack_targets(labels, target_boxes, num_classes);
  if (!packed) return {};
  const at::Tensor matched = set_matching(
      logits.unsqueeze(0), boxes.unsqueeze(0), packed->labels, packed->boxes, packed->offsets,
      std::nullopt, std::nullopt, class_cost, weight_class, weight_bbox, weight_giou, alpha, gamma,
      eps, groups, non_finite_cost);

  Lists lists;
  auto& [queries, places] = lists;
  const int64_t* bounds = packed->offsets.const_data_ptr<int64_t>();
  std::vector<MatchedPair> pairs;
  for (size_t b = 0; b < labels.size(); ++b) {
    sort_matches(matched.const_data_ptr<int64_t>(), groups, matched.size(1), bounds[b],
                 bounds[b + 1], pairs);
    const int64_t count = static_cast<int64_t>(pairs.size());
    queries.push_back(at::empty({count}, at::kLong));
    places.push_back(at::empty({count}, at::kLong));
    int64_t* query = queries.back().mutable_data_ptr<int64_t>();
    int64_t* place = places.back().mutable_data_ptr<int64_t>();
    for (const auto& [q, t] : pairs) {
      *query++ = q;
      *place++ = t;
    }
  }
  return lists;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("image_matching", image_matching);
}

}  // namespace
}  // namespace detr_fast
