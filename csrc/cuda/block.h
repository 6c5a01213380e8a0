// What kernels share: the warps of a block of threads, its dynamic shared memory, and sizes that
// are known on the device alone.

#pragma once

#include <cstdint>

namespace detr_fast {

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

extern __shared__ __align__(16) char block_memory[];

__device__ inline int lane_of_warp() { return threadIdx.x % kWarpSize; }
__device__ inline int warp_of_block() { return threadIdx.x / kWarpSize; }
__device__ inline int warps_of_block() { return blockDim.x / kWarpSize; }

// A size as far as it is one of `limit` things: a wrong one must not lead outside of memory.
__device__ inline int size_within(int64_t size, int limit) {
  return size < 0 ? 0 : size < limit ? static_cast<int>(size) : limit;
}

}  // namespace detr_fast
