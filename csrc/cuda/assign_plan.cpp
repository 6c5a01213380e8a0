#include <algorithm>

#include "assign.h"

namespace detr_fast {
namespace {

constexpr int kWarp = 32;
// With so many blocks on a multiprocessor, others waiting for their turn cost no time.
constexpr int64_t kBusy = 4;
// What the driver keeps of each block's shared memory.
constexpr size_t kReserved = 1024;

int slots_for(int columns) {
  for (const int slots : kSlots) {
    if (columns <= slots * kWarp) return slots;
  }
  return 0;
}

AssignmentLayout layout(int rows, int columns, size_t entry_bytes, bool in_registers) {
  const size_t m = columns, n = rows;
  AssignmentLayout at{};
  // The largest entries first, so that all are aligned.
  at.distance = at.v + sizeof(double) * m;
  at.minimum = at.distance + (in_registers ? 0 : sizeof(double) * m);
  at.predecessor = at.minimum + entry_bytes * n;
  at.row_of_column = at.predecessor + sizeof(int) * m;
  at.column_of_row = at.row_of_column + sizeof(int) * m;
  at.cheapest = at.column_of_row + sizeof(int) * n;
  at.bytes = (at.cheapest + sizeof(int) * n + 15) / 16 * 16;
  return at;
}

}  // namespace

AssignmentPlan plan_assignment(const AssignmentExtent& extent, size_t entry_bytes,
                               const Card& card) {
  AssignmentPlan plan{};
  plan.slots = slots_for(extent.columns);
  plan.state = layout(extent.rows, extent.columns, entry_bytes, plan.slots > 0);
  const size_t state = kScratchBytes + plan.state.bytes;
  if (state > card.shared_per_block) {
    plan.shared = kScratchBytes;
    plan.workspace = plan.state.bytes;
    return plan;
  }
  // Costs in shared memory are nearest, but not worth it where a block so large keeps other blocks
  // waiting: read from the caches they cost less than a second round.
  const int64_t blocks = (extent.count + card.multiprocessors - 1) / card.multiprocessors;
  const size_t together = static_cast<size_t>(std::clamp<int64_t>(blocks, 1, kBusy));
  const size_t share = card.shared_per_multiprocessor / together;
  const size_t room = std::min(card.shared_per_block, share > kReserved ? share - kReserved : 0);
  plan.shared = state + extent.smallest_cost <= room
                    ? std::min(room, state + extent.largest_cost)
                    : state;
  return plan;
}

}  // namespace detr_fast
