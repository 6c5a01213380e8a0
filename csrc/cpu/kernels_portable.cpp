// The CPU kernels for any processor.

#define DETR_FAST_CAPABILITY portable
#include "kernels_impl.h"

namespace detr_fast {

const CpuKernels& portable_kernels() {
  static constexpr CpuKernels kernels = portable::make_kernels("portable");
  return kernels;
}

}  // namespace detr_fast
