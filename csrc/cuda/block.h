// A block of threads: its warps, and its dynamic shared memory.

#pragma once

namespace detr_fast {

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

extern __shared__ __align__(16) char block_memory[];

__device__ inline int lane_of_warp() { return threadIdx.x % kWarpSize; }
__device__ inline int warp_of_block() { return threadIdx.x / kWarpSize; }
__device__ inline int warps_of_block() { return blockDim.x / kWarpSize; }

}  // namespace detr_fast
