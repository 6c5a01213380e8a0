// The attention kernel for float32 and AVX-512.
// What follows the target pragma is compiled for it; the standard library is included before.

#include "attention.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define DETR_FAST_CAPABILITY avx512
#include "attention_impl.h"
#include "number_avx512.h"

namespace detr_fast {
namespace avx512 {

struct AttentionFloat : Float {
  static void pack_values(const float* const (&from)[1], int64_t d, uint32_t* to) {
    _mm512_storeu_ps(to, _mm512_loadu_ps(from[0] + d));
  }
  static void store_weights(const __m512 (&weight)[1], uint32_t* to) {
    _mm512_storeu_ps(to, weight[0]);
  }
};

}  // namespace avx512
}  // namespace detr_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const AttentionKernel* avx512_attention() {
  static constexpr AttentionKernel kernel = avx512::make_attention<avx512::AttentionFloat>();
  return &kernel;
}

}  // namespace detr_fast

#else

namespace detr_fast {

const AttentionKernel* avx512_attention() { return nullptr; }

}  // namespace detr_fast

#endif
