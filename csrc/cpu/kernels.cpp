#include "kernels.h"

#include <cstdlib>
#include <string>
#include <string_view>

namespace detr_fast {
namespace {

const CpuKernels& choose() {
  const std::vector<const CpuKernels*> available = available_cpu_kernels();
  const char* named = std::getenv("DETR_FAST_CPU_CAPABILITY");
  for (const CpuKernels* kernels : available) {
    if (named && std::string(named) == kernels->capability) return *kernels;
  }
  return *available.back();
}

}  // namespace

void* Workspace::reserve(size_t bytes) {
  constexpr size_t kAlignment = 64;
  if (bytes > size_) {
    memory_.reset(new char[bytes + kAlignment]);
    size_ = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(memory_.get());
  return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

std::vector<const CpuKernels*> available_cpu_kernels() {
  std::vector<const CpuKernels*> available = {&portable_kernels()};
#if defined(__x86_64__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi")) return available;
  available.push_back(&avx2_kernels());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    available.push_back(&avx512_kernels());
  }
#endif
  return available;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

bool cpu_uses_avx512() { return std::string_view(cpu_kernels().capability) == "avx512"; }

bool cpu_uses_avx512bf16() {
#if defined(__x86_64__) && defined(__GNUC__)
  return cpu_uses_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace detr_fast
