// All kernels for inference, for the number format of the including file.

#pragma once

#include "attention_impl.h"
#include "inference_kernels.h"
#include "pointwise_impl.h"
#include "stem_impl.h"
#include "winograd_impl.h"

namespace detr_fast {
namespace DETR_FAST_CAPABILITY {

template <class Format>
constexpr InferenceKernels make_inference() {
  return {make_attention<Format>(), Pointwise<Format>::convolve, make_stem<Format>(),
          make_winograd<Format>()};
}

}  // namespace DETR_FAST_CAPABILITY
}  // namespace detr_fast
