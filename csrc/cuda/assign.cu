#include "assign_kernel.h"

namespace detr_fast {
namespace {

template <class Cost, class Team>
void launch_with(const AssignmentBatch<Cost>& batch, const AssignmentPlan& plan, void* workspace,
                 const Launch& launch) {
  const auto kernel = assign<Cost, Team>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), launch.device);
  kernel<<<static_cast<unsigned>(batch.count), Team::kThreads, plan.shared, launch.stream>>>(
      batch, plan, static_cast<char*>(workspace));
  check_launch("assign");
}

template <class Cost>
void launch_any(const AssignmentBatch<Cost>& batch, const AssignmentPlan& plan, void* workspace,
                const Launch& launch) {
  if (batch.count == 0) return;
  switch (plan.slots) {
    case kSlots[0]: return launch_with<Cost, WarpTeam<kSlots[0]>>(batch, plan, workspace, launch);
    case kSlots[1]: return launch_with<Cost, WarpTeam<kSlots[1]>>(batch, plan, workspace, launch);
    case kSlots[2]: return launch_with<Cost, WarpTeam<kSlots[2]>>(batch, plan, workspace, launch);
    case kSlots[3]: return launch_with<Cost, WarpTeam<kSlots[3]>>(batch, plan, workspace, launch);
    default: return launch_with<Cost, BlockTeam>(batch, plan, workspace, launch);
  }
}

}  // namespace

void launch_assignment(const AssignmentBatch<float>& batch, const AssignmentPlan& plan,
                       void* workspace, const Launch& launch) {
  launch_any(batch, plan, workspace, launch);
}

void launch_assignment(const AssignmentBatch<double>& batch, const AssignmentPlan& plan,
                       void* workspace, const Launch& launch) {
  launch_any(batch, plan, workspace, launch);
}

}  // namespace detr_fast
