// The attention kernel for bfloat16 and AVX512-BF16: products of pairs, summed in float32.
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
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define DETR_FAST_CAPABILITY avx512bf16
#include "attention_impl.h"
#include "number_avx512bf16.h"

namespace detr_fast {
namespace avx512bf16 {

struct AttentionBFloat16 : BFloat16 {
  // Without a second row its halves are 0.
  static void pack_values(const uint16_t* const (&from)[2], int64_t d, uint32_t* to) {
    const __m512i second = from[1] ? widened(from[1] + d) : _mm512_setzero_si512();
    _mm512_storeu_si512(to, _mm512_or_si512(widened(from[0] + d),
                                            _mm512_maskz_slli_epi32(0xffff, second, 16)));
  }
  static void store_weights(const __m512 (&weight)[2], uint32_t* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(weight[1], weight[0]));
  }
};

}  // namespace avx512bf16
}  // namespace detr_fast

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace detr_fast {

const AttentionKernel* avx512bf16_attention() {
  static constexpr AttentionKernel kernel =
      avx512bf16::make_attention<avx512bf16::AttentionBFloat16>();
  return &kernel;
}

}  // namespace detr_fast

#else

namespace detr_fast {

const AttentionKernel* avx512bf16_attention() { return nullptr; }

}  // namespace detr_fast

#endif
