#include "matching_kernel.h"

namespace detr_fast {
namespace {

template <class Cost, class Logit>
void launch_with(const MatchingBatch<Cost>& batch, const ImageTargets& targets,
                 const Launch& launch) {
  const int tiles = (batch.queries + kTile - 1) / kTile;
  const unsigned blocks = static_cast<unsigned>(tiles) * batch.sets * batch.images;
  matching_costs<Cost, Logit>
      <<<blocks, kMatchingThreads, 2 * kTile * sizeof(Cost), launch.stream>>>(batch, targets,
                                                                              tiles);
  check_launch("matching_costs");
}

}  // namespace

void launch_matching_cost(const MatchingBatch<float>& batch, const ImageTargets& targets,
                          const Launch& launch) {
  switch (batch.logits.type) {
    case NumberType::kHalf: return launch_with<float, __half>(batch, targets, launch);
    case NumberType::kBFloat16: return launch_with<float, BFloat16>(batch, targets, launch);
    default: return launch_with<float, float>(batch, targets, launch);
  }
}

void launch_matching_cost(const MatchingBatch<double>& batch, const ImageTargets& targets,
                          const Launch& launch) {
  launch_with<double, double>(batch, targets, launch);
}

}  // namespace detr_fast
