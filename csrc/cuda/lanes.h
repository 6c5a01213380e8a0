// The Lanes of lap_lanes.h on a GPU: the 32 threads of a warp, or all threads of a block.

#pragma once

#include "block.h"

namespace detr_fast {

// Leaves in every thread of the warp the smallest value and, among equals, the lowest index, which
// is not negative. No value is NaN. It orders no memory.
__device__ inline void warp_argmin(double& value, int& index) {
#if __CUDA_ARCH__ >= 800
  // Three reductions of 32 bits in hardware. As an unsigned integer with the sign turned round the
  // bits of a number order as the number does, once -0.0 is 0.0.
  const long long bits = __double_as_longlong(value + 0.0);
  const unsigned long long key =
      static_cast<unsigned long long>(bits) ^ (bits < 0 ? ~0ull : 1ull << 63);
  const unsigned high = static_cast<unsigned>(key >> 32), low = static_cast<unsigned>(key);
  const unsigned best_high = __reduce_min_sync(kWholeWarp, high);
  const unsigned best_low = __reduce_min_sync(kWholeWarp, high == best_high ? low : ~0u);
  const bool best = high == best_high && low == best_low;
  index = static_cast<int>(
      __reduce_min_sync(kWholeWarp, best ? static_cast<unsigned>(index) : ~0u));
  const unsigned long long best_key =
      static_cast<unsigned long long>(best_high) << 32 | best_low;
  value = __longlong_as_double(
      static_cast<long long>(best_key ^ (best_key >> 63 ? 1ull << 63 : ~0ull)));
#else
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const double other = __shfl_xor_sync(kWholeWarp, value, step);
    const int other_index = __shfl_xor_sync(kWholeWarp, index, step);
    if (other < value || (other == value && other_index < index)) {
      value = other;
      index = other_index;
    }
  }
#endif
}

class WarpLanes {
 public:
  __device__ int lane() const { return lane_of_warp(); }
  __device__ int count() const { return kWarpSize; }
  __device__ void sync() const { __syncwarp(); }
  __device__ void argmin(double& value, int& index) const { warp_argmin(value, index); }
};

class BlockLanes {
 public:
  // In shared memory. One half is written while late threads may still read the other.
  struct Scratch {
    double value[2][kWarpSize];
    int index[2][kWarpSize];
  };

  // For a block of whole warps.
  __device__ explicit BlockLanes(Scratch& scratch) : scratch_(scratch) {}

  __device__ int lane() const { return threadIdx.x; }
  __device__ int count() const { return blockDim.x; }
  __device__ void sync() const { __syncthreads(); }

  __device__ void argmin(double& value, int& index) {
    const int place = lane_of_warp(), warp = warp_of_block();
    warp_argmin(value, index);
    if (place == 0) {
      scratch_.value[half_][warp] = value;
      scratch_.index[half_][warp] = index;
    }
    __syncthreads();
    // Threads without a warp to look at repeat the first one's.
    const int from = place < warps_of_block() ? place : 0;
    value = scratch_.value[half_][from];
    index = scratch_.index[half_][from];
    warp_argmin(value, index);
    half_ = 1 - half_;
  }

 private:
  Scratch& scratch_;
  int half_ = 0;
};

}  // namespace detr_fast
