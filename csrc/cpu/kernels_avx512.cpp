// The CPU kernels for AVX-512. What follows the target pragma is compiled for it; whatever other
// files could share, such as functions of the standard library, is included before.

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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,bmi")
#endif

#define DETR_FAST_AVX512
#define DETR_FAST_CAPABILITY avx512
#include "kernels_impl.h"

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const CpuKernels& avx512_kernels() {
  static constexpr CpuKernels kernels = avx512::make_kernels("avx512");
  return kernels;
}

}  // namespace detr_fast

#endif
