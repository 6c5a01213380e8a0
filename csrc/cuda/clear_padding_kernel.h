// The kernel that clears the padding of feature maps. The padding of a plane is one run of bytes to
// the right of each row of the image, and one of all rows below. Runs are cut into pieces, which
// the warps of an image take in turn; so the work is the padding, whatever the map.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "block.h"
#include "clear_padding.h"

namespace detr_fast {

constexpr int kClearingThreads = 256;
constexpr long long kPieceBytes = 4096;

// How many pieces a run is cut into.
__device__ inline unsigned pieces_of(long long bytes) {
  return static_cast<unsigned>((bytes + kPieceBytes - 1) / kPieceBytes);
}

// Clears the bytes from `begin` to `end`, both even addresses, by a warp: 16 bytes at a time
// between the first and the last address that allow it.
__device__ inline void clear_by_warp(char* begin, char* end) {
  constexpr int kWide = sizeof(uint4), kNarrow = sizeof(unsigned short);
  const int lane = lane_of_warp();
  const auto skew = static_cast<int>(reinterpret_cast<uintptr_t>(begin) % kWide);
  char* wide = begin + (kWide - skew) % kWide;
  if (wide > end) wide = end;
  char* rest = wide + (end - wide) / kWide * kWide;
  const auto clear_few = [lane](char* from, char* to) {
    char* own = from + lane * kNarrow;
    if (own < to) *reinterpret_cast<unsigned short*>(own) = 0;
  };
  clear_few(begin, wide);
  for (char* own = wide + lane * kWide; own < rest; own += kWarpSize * kWide) {
    *reinterpret_cast<uint4*>(own) = uint4{0, 0, 0, 0};
  }
  clear_few(rest, end);
}

// A grid of `workers` blocks for each image.
__global__ void __launch_bounds__(kClearingThreads)
    clear_padding(const PaddedGrid grid, unsigned workers) {
  const unsigned image = blockIdx.x / workers;
  const int rows = size_within(grid.extents[2 * image], grid.height);
  const int columns = size_within(grid.extents[2 * image + 1], grid.width);
  const long long row_bytes = grid.width * grid.column_bytes;
  const long long plane_bytes = grid.height * row_bytes;
  const long long inside_bytes = columns * grid.column_bytes;
  const unsigned in_row = pieces_of(row_bytes - inside_bytes);
  const unsigned to_the_right = rows * in_row;
  const unsigned in_plane = to_the_right + pieces_of(plane_bytes - rows * row_bytes);
  char* planes = grid.data + image * (grid.planes * plane_bytes);

  const unsigned warps = workers * warps_of_block();
  for (unsigned k = blockIdx.x % workers * warps_of_block() + warp_of_block();
       k < grid.planes * in_plane; k += warps) {
    char* plane = planes + k / in_plane * plane_bytes;
    const unsigned piece = k % in_plane;
    long long run, end;
    unsigned place;
    if (piece < to_the_right) {
      const long long row = piece / in_row * row_bytes;
      run = row + inside_bytes;
      end = row + row_bytes;
      place = piece % in_row;
    } else {
      run = rows * row_bytes;
      end = plane_bytes;
      place = piece - to_the_right;
    }
    const long long start = run + place * kPieceBytes;
    clear_by_warp(plane + start, plane + (start + kPieceBytes < end ? start + kPieceBytes : end));
  }
}

}  // namespace detr_fast
