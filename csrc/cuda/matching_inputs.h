// What matching_cost and set_matching are given, as the kernels want it. Nothing is copied, read
// back or converted: the kernels read any type and any strides.

#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "matching.h"

namespace detr_fast {

// How the operations' arguments are spelled in C++, in the order of their schemas.
struct MatchingArguments {
  const at::Tensor &logits, &boxes, &labels, &target_boxes, &offsets;
  const std::optional<at::Tensor>&counts, &extra_cost;
  c10::string_view class_cost;
  double weight_class, weight_bbox, weight_giou, alpha, gamma, eps;
};

class MatchingInputs {
 public:
  // The queries of an image are `groups` runs of equal length. Raises ValueError as the reference
  // does where that needs no waiting for the device.
  MatchingInputs(const MatchingArguments& given, int64_t groups)
      : given_(given), groups_(groups), starts_(read(given.offsets)) {
    check_sizes();
    check_starts();
    if (!given.counts) {
      for (int64_t b = 0; b < images(); ++b) counts_.push_back(room_of(b));
    } else if (given.counts->is_cpu()) {
      counts_ = read(*given.counts);
      for (int64_t b = 0; b < images(); ++b) {
        counts_[b] = std::clamp<int64_t>(counts_[b], 0, room_of(b));
      }
    } else {
      TORCH_CHECK_VALUE(given.counts->device() == given.logits.device(), "counts is on ",
                        given.counts->device(), " and logits are on ", given.logits.device(),
                        ": use the same device, or the CPU.");
      device_counts_ = given.counts->contiguous();
    }
  }

  bool in_double() const { return given_.logits.scalar_type() == at::kDouble; }
  at::TensorOptions options() const {
    return given_.logits.options().dtype(in_double() ? at::kDouble : at::kFloat);
  }
  int64_t sets() const { return given_.logits.size(0); }
  int64_t images() const { return given_.logits.size(1); }
  int64_t queries() const { return given_.logits.size(2); }
  int64_t groups() const { return groups_; }
  int64_t queries_of_group() const { return queries() / groups_; }
  int64_t targets() const { return given_.labels.size(0); }

  // The smallest and the largest number of targets that an image of a launch can have.
  int64_t fewest(int64_t first_image, int64_t count) const {
    if (device_counts_.defined()) return 0;
    return *std::min_element(counts_.begin() + first_image,
                             counts_.begin() + first_image + count);
  }
  int64_t most(int64_t first_image, int64_t count) const {
    int64_t most = 0;
    for (int64_t b = first_image; b < first_image + count; ++b) {
      most = std::max(most, device_counts_.defined() ? room_of(b) : counts_[b]);
    }
    return most;
  }

  // launch(first image, number of images) for as few launches as can take all images.
  template <class Run>
  void for_each_launch(const Run& run) const {
    for (int64_t b = 0; b < images(); b += kMostImages) {
      run(b, std::min<int64_t>(kMostImages, images() - b));
    }
  }

  template <class Cost>
  MatchingBatch<Cost> batch(int64_t first_image, int64_t count, at::Tensor& cost) const {
    MatchingBatch<Cost> batch{};
    batch.sets = static_cast<int>(sets());
    batch.queries = static_cast<int>(queries());
    batch.classes = static_cast<int>(given_.logits.size(3));
    batch.groups = static_cast<int>(groups_);
    batch.images = static_cast<int>(count);
    batch.first_image = static_cast<int>(first_image);
    batch.targets = static_cast<int>(targets());
    batch.logits = numbers(given_.logits);
    batch.boxes = numbers(given_.boxes);
    batch.labels = given_.labels.const_data_ptr<int64_t>();
    batch.label_stride = given_.labels.stride(0);
    batch.target_boxes = numbers(given_.target_boxes);
    if (given_.extra_cost) batch.extra = numbers(*given_.extra_cost);
    if (device_counts_.defined()) batch.counts = device_counts_.const_data_ptr<int64_t>();
    batch.focal = std::string_view(given_.class_cost.data(), given_.class_cost.size()) == "focal";
    batch.focal_parameters = {given_.alpha, given_.gamma, given_.eps};
    batch.weights = {given_.weight_class, given_.weight_bbox, given_.weight_giou};
    batch.cost = cost.mutable_data_ptr<Cost>();
    return batch;
  }

  ImageTargets image_targets(int64_t first_image, int64_t count) const {
    ImageTargets targets{};
    for (int64_t b = 0; b < count; ++b) {
      targets.first[b] = static_cast<int>(starts_[first_image + b]);
      if (!device_counts_.defined()) {
        targets.count[b] = static_cast<int>(counts_[first_image + b]);
      }
    }
    targets.first[count] = static_cast<int>(starts_[first_image + count]);
    return targets;
  }

 private:
  static std::vector<int64_t> read(const at::Tensor& on_cpu) {
    const at::Tensor dense = on_cpu.contiguous();
    const int64_t* data = dense.const_data_ptr<int64_t>();
    return {data, data + dense.numel()};
  }

  static Numbers numbers(const at::Tensor& tensor) {
    Numbers numbers{tensor.const_data_ptr(), NumberType::kFloat, {}};
    switch (tensor.scalar_type()) {
      case at::kHalf: numbers.type = NumberType::kHalf; break;
      case at::kBFloat16: numbers.type = NumberType::kBFloat16; break;
      case at::kFloat: numbers.type = NumberType::kFloat; break;
      case at::kDouble: numbers.type = NumberType::kDouble; break;
      default:
        TORCH_CHECK_TYPE(false, "a tensor has dtype ", tensor.scalar_type(),
                         ": use float16, bfloat16, float32 or float64.");
    }
    std::copy(tensor.strides().begin(), tensor.strides().end(), numbers.strides);
    return numbers;
  }

  int64_t room_of(int64_t b) const { return starts_[b + 1] - starts_[b]; }

  void check_sizes() const {
    // Blocks of a launch and numbers of targets are counted in 32 bits.
    constexpr int64_t kMost = int64_t{1} << 30;
    TORCH_CHECK_VALUE(
        sets() * groups_ * images() < kMost && queries() < kMost && targets() < kMost &&
            sets() * images() * (queries() / 32 + 1) < kMost,
        "logits of shape ", given_.logits.sizes(), " and ", targets(), " targets in ", groups_,
        " groups are more than one call can match on CUDA.");
  }

  void check_starts() const {
    bool ascending = starts_.front() == 0 && starts_.back() == targets();
    for (size_t b = 1; b < starts_.size(); ++b) ascending &= starts_[b - 1] <= starts_[b];
    TORCH_CHECK_VALUE(ascending, "offsets are ", at::IntArrayRef(starts_),
                      ", but must ascend from 0 to the number of targets, ", targets(), ".");
  }

  const MatchingArguments given_;
  int64_t groups_;
  std::vector<int64_t> starts_, counts_;
  at::Tensor device_counts_;
};

}  // namespace detr_fast
