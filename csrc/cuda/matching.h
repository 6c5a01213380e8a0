// The costs of matching on the GPU, and the assignment problems they make: what a launch is given.
// For the host and for nvcc; no torch headers. The kernel is in matching_kernel.h.

#pragma once

#include <cstdint>

#include "../matching_cost.h"
#include "assign.h"

namespace detr_fast {

enum class NumberType { kHalf, kBFloat16, kFloat, kDouble };

// A tensor of numbers of any type.
struct Numbers {
  const void* data;
  NumberType type;
  long long strides[4];
};

// Offsets go to the kernel as arguments, which are at most 4 KiB: then there is no copy to wait
// for, and none to capture in a graph. More images are matched in several launches.
constexpr int kMostImages = 384;

struct ImageTargets {
  int first[kMostImages + 1];  // target of an image; at the end, the number of targets
  int count[kMostImages];      // targets of an image, without the room behind them
};

// `Cost` is the type of the costs: double if the logits are, else float.
template <class Cost>
struct MatchingBatch {
  int sets, queries, classes, groups;
  int images, first_image;  // of this launch
  int targets;              // of all images
  Numbers logits;  // (sets, all images, queries, classes)
  Numbers boxes;   // (sets, all images, queries, 4)
  const int64_t* labels;
  long long label_stride;
  Numbers target_boxes;   // (targets, 4)
  Numbers extra;          // (sets, targets, queries), or data is null
  const int64_t* counts;  // (all images), on the device, or null: then those of ImageTargets hold

  bool focal;  // else softmax
  FocalParameters focal_parameters;
  CostWeights weights;

  // Target t has its row at cost + (set * targets + t) * queries: the costs, 0 in the room. If
  // there are `problems`, costs are brought into `range`, the room is left, and an image with more
  // targets than a group has queries has columns there instead, a query after the other: the
  // smaller side is a row to the solver, and rows are dense.
  Cost* cost;
  CostRange range;
  AssignmentProblem<Cost>* problems;  // (sets, groups, images of this launch), or null
  int64_t* answer;                    // (sets * groups, targets)
};

// Writes the costs, and with `problems` the problems for launch_assignment.
void launch_matching_cost(const MatchingBatch<float>& batch, const ImageTargets& targets,
                          const Launch& launch);
void launch_matching_cost(const MatchingBatch<double>& batch, const ImageTargets& targets,
                          const Launch& launch);

}  // namespace detr_fast
