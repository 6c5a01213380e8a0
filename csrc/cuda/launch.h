// What every launch needs: the current stream, the card's limits, and errors as sentences. No torch
// headers, which nvcc would read once for each architecture.

#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace detr_fast {

struct Launch {
  cudaStream_t stream;
  int device;
};

// The current stream of the current device, as torch has them.
Launch current_launch();

struct Card {
  int multiprocessors;
  size_t shared_per_block;           // what a kernel can be allowed
  size_t shared_per_multiprocessor;
};

// The limits of a device, asked once.
const Card& card(int device);

// Allows a kernel as much dynamic shared memory as the device has for a block; once for each kernel
// and device.
void allow_shared_memory(const void* kernel, int device);

// Raises a RuntimeError if the launch just made, of the kernel of that name, failed.
void check_launch(const char* kernel);

}  // namespace detr_fast
