// What matching_cost and set_matching are given, as dense arrays in the type of the costs.

#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels.h"

namespace detr_fast {

// The CPU kernel's costs of one image, by the type of the costs.
template <class T>
auto matching_cost_kernel() {
  if constexpr (std::is_same_v<T, float>) {
    return cpu_kernels().matching_cost_float;
  } else {
    return cpu_kernels().matching_cost_double;
  }
}

class MatchingInputs {
 public:
  // Raises ValueError and IndexError as the reference does.
  MatchingInputs(const at::Tensor& logits, const at::Tensor& boxes, const at::Tensor& labels,
                 const at::Tensor& target_boxes, const at::Tensor& offsets)
      : type_(logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        logits_(logits.to(type_).contiguous()),
        boxes_(boxes.to(type_).contiguous()),
        labels_(labels.contiguous()),
        target_boxes_(target_boxes.to(type_).contiguous()),
        bounds_(read(offsets)) {
    check_bounds();
    check_labels();
  }

  at::ScalarType type() const { return type_; }
  at::TensorOptions options() const { return logits_.options(); }
  int64_t sets() const { return logits_.size(0); }
  int64_t images() const { return logits_.size(1); }
  int64_t queries() const { return logits_.size(2); }
  int64_t targets() const { return labels_.size(0); }
  // Image b has the targets first(b) to first(b + 1) - 1.
  int64_t first(int64_t b) const { return bounds_[b]; }
  int64_t targets_of(int64_t b) const { return bounds_[b + 1] - bounds_[b]; }

  template <class T>
  ImageMatching<T> image(int64_t set, int64_t b) const {
    const int64_t slot = set * images() + b;
    const int64_t classes = logits_.size(3);
    return {logits_.const_data_ptr<T>() + slot * queries() * classes,
            boxes_.const_data_ptr<T>() + slot * queries() * 4,
            labels_.const_data_ptr<int64_t>() + first(b),
            target_boxes_.const_data_ptr<T>() + first(b) * 4,
            queries(),
            classes,
            targets_of(b)};
  }

 private:
  static std::vector<int64_t> read(const at::Tensor& offsets) {
    const at::Tensor dense = offsets.contiguous();
    const int64_t* data = dense.const_data_ptr<int64_t>();
    return {data, data + dense.numel()};
  }

  void check_bounds() const {
    bool ascending = bounds_.front() == 0 && bounds_.back() == targets();
    for (size_t b = 1; b < bounds_.size(); ++b) ascending &= bounds_[b - 1] <= bounds_[b];
    TORCH_CHECK_VALUE(ascending, "offsets are ", at::IntArrayRef(bounds_),
                      ", but must ascend from 0 to the number of targets, ", targets(), ".");
  }

  void check_labels() const {
    const int64_t classes = logits_.size(3);
    const int64_t* labels = labels_.const_data_ptr<int64_t>();
    for (int64_t t = 0; t < targets(); ++t) {
      TORCH_CHECK_INDEX(0 <= labels[t] && labels[t] < classes, "labels[", t, "] is ", labels[t],
                        ", but the logits have ", classes, " classes: labels must be in [0, ",
                        classes - 1, "].");
    }
  }

  at::ScalarType type_;
  at::Tensor logits_, boxes_, labels_, target_boxes_;
  std::vector<int64_t> bounds_;
};

inline MatchingOptions matching_options(std::string_view class_cost, double weight_class,
                                        double weight_bbox, double weight_giou, double alpha,
                                        double gamma, double eps) {
  return {class_cost == "focal", {alpha, gamma, eps}, {weight_class, weight_bbox, weight_giou}};
}

}  // namespace detr_fast
