#include "launch.h"

#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace detr_fast {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, which, device);
  TORCH_CHECK(error == cudaSuccess, "cuda:", device, " does not tell its limits: ",
              cudaGetErrorString(error), ".");
  return value;
}

void check(cudaError_t error, const char* action, const char* kernel) {
  if (error == cudaSuccess) return;
  // The sticky copy of the error, which would be reported again by whoever asks next.
  (void)cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    int device = 0;
    (void)cudaGetDevice(&device);
    const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
    const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
    TORCH_CHECK(false, "detr_fast has no kernel for cuda:", device, " of compute capability ",
                major, ".", minor, " (", cudaGetErrorString(error), "): it was built for ",
                DETR_FAST_CUDA_ARCH_LIST, ". Rebuild it with TORCH_CUDA_ARCH_LIST=", major, ".",
                minor, " pip install --no-build-isolation .");
  }
  TORCH_CHECK(false, "detr_fast could not ", action, " ", kernel, " on the GPU: ",
              cudaGetErrorString(error), ".");
}

}  // namespace

Launch current_launch() {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
  return {stream.stream(), stream.device_index()};
}

const Card& card(int device) {
  static std::mutex mutex;
  static std::map<int, Card> cards;  // whose elements stay where they are
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = cards.find(device);
  if (known != cards.end()) return known->second;
  const auto bytes = [&](cudaDeviceAttr which) {
    return static_cast<size_t>(attribute(which, device));
  };
  return cards
      .emplace(device, Card{attribute(cudaDevAttrMultiProcessorCount, device),
                            bytes(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                            bytes(cudaDevAttrMaxSharedMemoryPerMultiprocessor)})
      .first->second;
}

void allow_shared_memory(const void* kernel, int device) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  const std::lock_guard<std::mutex> lock(mutex);
  if (allowed.count({kernel, device})) return;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "load", "a kernel");
  const size_t dynamic = card(device).shared_per_block - attributes.sharedSizeBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(dynamic)),
        "allow shared memory to", "a kernel");
  allowed.insert({kernel, device});
}

void check_launch(const char* kernel) { check(cudaGetLastError(), "launch", kernel); }

}  // namespace detr_fast
