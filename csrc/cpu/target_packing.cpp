// target_packing on the CPU: the contract is in detr_fast/ops/target_packing.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "matching_operations.h"

namespace detr_fast {
namespace {

// Rounding of normalised coordinates, half types included, stays below this; pixels far above.
constexpr double kCoordinateSlack = 1e-2;

bool regular(at::TensorList labels, at::TensorList boxes) {
  if (labels.empty() || labels.size() != boxes.size()) return false;
  const at::ScalarType type = boxes[0].scalar_type();
  if (type != at::kFloat && type != at::kDouble) return false;
  for (size_t b = 0; b < labels.size(); ++b) {
    if (labels[b].scalar_type() != at::kLong || labels[b].dim() != 1) return false;
    const bool fits =
        boxes[b].scalar_type() == type && boxes[b].dim() == 2 && boxes[b].size(1) == 4;
    if (!fits) return false;
    if (boxes[b].size(0) != labels[b].size(0)) return false;
    if (!boxes[b].is_cpu() || !labels[b].is_cpu()) return false;
  }
  return true;
}

// Copies the boxes of an image; false if one is not normalised or has no area, or is NaN.
template <class T>
bool copy_boxes(const at::Tensor& boxes, T* to) {
  const at::Tensor dense = boxes.contiguous();
  const T* from = dense.const_data_ptr<T>();
  const T low = static_cast<T>(-kCoordinateSlack), high = static_cast<T>(1 + kCoordinateSlack);
  bool sound = true;
  for (int64_t t = 0; t < dense.size(0); ++t) {
    const T* box = from + 4 * t;
    for (int k = 0; k < 4; ++k) sound &= box[k] >= low && box[k] <= high;
    sound &= box[2] > 0 && box[3] > 0;
    std::copy_n(box, 4, to + 4 * t);
  }
  return sound;
}

bool copy_labels(const at::Tensor& labels, int64_t num_classes, int64_t* to) {
  const at::Tensor dense = labels.contiguous();
  const int64_t* from = dense.const_data_ptr<int64_t>();
  bool sound = true;
  for (int64_t t = 0; t < dense.size(0); ++t) {
    sound &= 0 <= from[t] && from[t] < num_classes;
    to[t] = from[t];
  }
  return sound;
}

}  // namespace

std::optional<PackedTargets> pack_targets(at::TensorList labels, at::TensorList boxes,
                                          int64_t num_classes) {
  if (!regular(labels, boxes)) return std::nullopt;
  const auto integers = at::TensorOptions().dtype(at::kLong);
  at::Tensor offsets = at::empty({static_cast<int64_t>(labels.size()) + 1}, integers);
  int64_t* bounds = offsets.mutable_data_ptr<int64_t>();
  bounds[0] = 0;
  for (size_t b = 0; b < labels.size(); ++b) bounds[b + 1] = bounds[b] + labels[b].size(0);
  const int64_t targets = bounds[labels.size()];
  at::Tensor all_labels = at::empty({targets}, integers);
  at::Tensor all_boxes = at::empty({targets, 4}, boxes[0].options());
  int64_t* labels_to = all_labels.mutable_data_ptr<int64_t>();
  bool sound = true;
  for (size_t b = 0; b < labels.size(); ++b) {
    sound &= copy_labels(labels[b], num_classes, labels_to + bounds[b]);
    sound &= all_boxes.scalar_type() == at::kDouble
                 ? copy_boxes(boxes[b], all_boxes.mutable_data_ptr<double>() + 4 * bounds[b])
                 : copy_boxes(boxes[b], all_boxes.mutable_data_ptr<float>() + 4 * bounds[b]);
  }
  if (!sound) return std::nullopt;
  return PackedTargets{all_labels, all_boxes, offsets};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> target_packing(at::TensorList labels,
                                                                          at::TensorList boxes,
                                                                          int64_t num_classes) {
  const auto packed = pack_targets(labels, boxes, num_classes);
  const at::Tensor sound = at::scalar_tensor(packed.has_value(), at::kBool);
  if (packed) return {packed->labels, packed->boxes, packed->offsets, sound};
  return {at::empty({0}, at::kLong), at::empty({0, 4}), at::zeros({1}, at::kLong), sound};
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("target_packing", target_packing);
}

}  // namespace
}  // namespace detr_fast
