// The operations that image_matching is made of, as C++ functions; each is defined, and registered
// with torch's dispatcher, in the file of its name.

#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace detr_fast {

struct PackedTargets {
  at::Tensor labels, boxes, offsets;
};

// None if anything is not as the contract of target_packing has it.
std::optional<PackedTargets> pack_targets(at::TensorList labels, at::TensorList boxes,
                                          int64_t num_classes);

at::Tensor set_matching(const at::Tensor& logits, const at::Tensor& boxes, const at::Tensor& labels,
                        const at::Tensor& target_boxes, const at::Tensor& offsets,
                        const std::optional<at::Tensor>& counts,
                        const std::optional<at::Tensor>& extra_cost, c10::string_view class_cost,
                        double weight_class, double weight_bbox, double weight_giou, double alpha,
                        double gamma, double eps, int64_t groups, double non_finite_cost);

// A query and its target.
using MatchedPair = std::pair<int64_t, int64_t>;

// Sets `pairs` to the matches of the image with targets `first` to `last` - 1, queries ascending.
// `matched` is dense, [groups, targets].
void sort_matches(const int64_t* matched, int64_t groups, int64_t targets, int64_t first,
                  int64_t last, std::vector<MatchedPair>& pairs);

}  // namespace detr_fast
