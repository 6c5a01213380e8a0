#include <algorithm>

#include "clear_padding_kernel.h"

namespace detr_fast {
namespace {

// Blocks that a multiprocessor holds at once.
constexpr long long kBlocks = 2048 / kClearingThreads;
constexpr long long kWarps = kClearingThreads / kWarpSize;

}  // namespace

void launch_clear_padding(const PaddedGrid& grid, const Launch& launch) {
  // No more warps than an image can have pieces, and otherwise as many as there is room for.
  const long long row_bytes = grid.width * grid.column_bytes;
  const long long pieces = grid.planes * (grid.height + grid.height * row_bytes / kPieceBytes + 1);
  const long long room = kBlocks * card(launch.device).multiprocessors / grid.images;
  const auto workers =
      static_cast<unsigned>(std::clamp<long long>(room, 1, (pieces + kWarps - 1) / kWarps));
  clear_padding<<<grid.images * workers, kClearingThreads, 0, launch.stream>>>(grid, workers);
  check_launch("clear_padding");
}

}  // namespace detr_fast
