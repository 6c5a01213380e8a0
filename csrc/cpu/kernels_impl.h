// The CPU kernels for the instruction set of the including file; see kernels.h and simd.h.

#pragma once

#include "assignment_impl.h"
#include "kernels.h"
#include "matching_cost_impl.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

constexpr CpuKernels make_kernels(const char* capability) {
  return {capability,
          assign<float>,
          assign<double>,
          certify<float>,
          certify<double>,
          assignment_bytes,
          matching_cost_of_image<float>,
          matching_cost_of_image<double>,
          matching_cost_bytes};
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
