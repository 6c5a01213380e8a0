// The CPU kernels for AVX2. What follows the target pragma is compiled for it; whatever other files
// could share, such as functions of the standard library, is included before.

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi")
#endif

#define DETR_FAST_AVX2
#define DETR_FAST_CAPABILITY avx2
#include "kernels_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const CpuKernels& avx2_kernels() {
  static constexpr CpuKernels kernels = avx2::make_kernels("avx2");
  return kernels;
}

}  // namespace detr_fast

#endif
