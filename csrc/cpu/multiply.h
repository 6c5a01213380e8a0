// What every product with packed weights has in common: the sizes of a tile of sums.

#pragma once

#include <cstdint>

namespace detr_fast {

// Outputs whose weights lie side by side.
constexpr int64_t kOutputStep = 64;

// Rows of inputs that are multiplied at once.
constexpr int64_t kTileRows = 6;

}  // namespace detr_fast
