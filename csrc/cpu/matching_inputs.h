// What matching_cost and set_matching are given, as dense arrays in the type of the costs.

#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
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

// How the operations' arguments are spelled in C++, in the order of their schemas.
struct MatchingArguments {
  const at::Tensor &logits, &boxes, &labels, &target_boxes, &offsets;
  const std::optional<at::Tensor>&counts, &extra_cost;
};

class MatchingInputs {
 public:
  // The queries of an image are `groups` runs of equal length. Raises ValueError and IndexError as
  // the reference does.
  MatchingInputs(const MatchingArguments& given, int64_t groups)
      : type_(given.logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
        groups_(groups),
        logits_(dense(given.logits)),
        boxes_(dense(given.boxes)),
        labels_(given.labels.contiguous()),
        target_boxes_(dense(given.target_boxes)),
        starts_(read(given.offsets)) {
    if (given.extra_cost) extra_cost_ = dense(*given.extra_cost);
    check_starts();
    stops_.assign(starts_.begin() + 1, starts_.end());
    if (given.counts) limit(read(*given.counts));
    check_labels();
  }

  at::ScalarType type() const { return type_; }
  at::TensorOptions options() const { return logits_.options(); }
  int64_t sets() const { return logits_.size(0); }
  int64_t groups() const { return groups_; }
  int64_t images() const { return logits_.size(1); }
  int64_t queries() const { return logits_.size(2); }
  int64_t classes() const { return logits_.size(3); }
  int64_t queries_of_group() const { return queries() / groups_; }
  int64_t targets() const { return labels_.size(0); }
  // Image b has the targets first(b) to first(b) + targets_of(b) - 1.
  int64_t first(int64_t b) const { return starts_[b]; }
  int64_t targets_of(int64_t b) const { return stops_[b] - starts_[b]; }
  // Whether images have room for more targets than they have.
  bool has_room() const { return has_room_; }

  template <class T>
  ImageMatching<T> image(int64_t set, int64_t group, int64_t b) const {
    const int64_t classes = this->classes();
    const int64_t skipped = group * queries_of_group();
    const int64_t query = (set * images() + b) * queries() + skipped;
    return {logits_.const_data_ptr<T>() + query * classes,
            boxes_.const_data_ptr<T>() + query * 4,
            labels_.const_data_ptr<int64_t>() + first(b),
            target_boxes_.const_data_ptr<T>() + first(b) * 4,
            extra_cost_.defined() ? extra_cost_.const_data_ptr<T>() +
                                        (set * targets() + first(b)) * queries() + skipped
                                  : nullptr,
            queries(),
            queries_of_group(),
            classes,
            targets_of(b)};
  }

 private:
  at::Tensor dense(const at::Tensor& given) const { return given.to(type_).contiguous(); }

  static std::vector<int64_t> read(const at::Tensor& numbers) {
    const at::Tensor on_cpu = numbers.cpu().contiguous();
    const int64_t* data = on_cpu.const_data_ptr<int64_t>();
    return {data, data + on_cpu.numel()};
  }

  void check_starts() const {
    bool ascending = starts_.front() == 0 && starts_.back() == targets();
    for (size_t b = 1; b < starts_.size(); ++b) ascending &= starts_[b - 1] <= starts_[b];
    TORCH_CHECK_VALUE(ascending, "offsets are ", at::IntArrayRef(starts_),
                      ", but must ascend from 0 to the number of targets, ", targets(), ".");
  }

  void limit(const std::vector<int64_t>& counts) {
    for (size_t b = 0; b < stops_.size(); ++b) {
      const int64_t room = stops_[b] - starts_[b];
      TORCH_CHECK_VALUE(0 <= counts[b] && counts[b] <= room, "counts[", b, "] is ", counts[b],
                        ", but offsets leave image ", b, " room for ", room, " targets.");
      stops_[b] = starts_[b] + counts[b];
      has_room_ |= counts[b] < room;
    }
  }

  void check_labels() const {
    const int64_t classes = this->classes();
    const int64_t* labels = labels_.const_data_ptr<int64_t>();
    for (size_t b = 0; b < stops_.size(); ++b) {
      for (int64_t t = starts_[b]; t < stops_[b]; ++t) {
        TORCH_CHECK_INDEX(0 <= labels[t] && labels[t] < classes, "labels[", t, "] is ", labels[t],
                          ", but the logits have ", classes, " classes: labels must be in [0, ",
                          classes - 1, "].");
      }
    }
  }

  at::ScalarType type_;
  int64_t groups_;
  at::Tensor logits_, boxes_, labels_, target_boxes_, extra_cost_;
  std::vector<int64_t> starts_, stops_;
  bool has_room_ = false;
};

inline MatchingOptions matching_options(c10::string_view class_cost, double weight_class,
                                        double weight_bbox, double weight_giou, double alpha,
                                        double gamma, double eps,
                                        std::optional<CostRange> range = std::nullopt) {
  const std::string_view name(class_cost.data(), class_cost.size());
  return {
      name == "focal", {alpha, gamma, eps}, {weight_class, weight_bbox, weight_giou}, range};
}

}  // namespace detr_fast
