// resnet_stem on the CPU: the contract is in detr_fast/ops/resnet_stem.py.

#include "stem.h"

#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "convolution.h"
#include "kernel_choice.h"
#include "parallel.h"

namespace detr_fast {
namespace {

// Rows of an output that are made one after another; the row of the convolution above them is made
// twice.
constexpr int64_t kBand = 16;

// Divides each image into bands for whichever thread is free, as many for each thread.
void run(const StemKernel& kernel, const StemProblem& problem, int64_t rows) {
  const int64_t threads = at::get_num_threads();
  const int64_t needed = (rows + kBand - 1) / kBand;
  const int64_t bands = std::min((needed + threads - 1) / threads * threads, rows);
  const int64_t work = problem.images * problem.height * problem.width * problem.outputs;
  const auto make_storage = [] { return Workspace(); };
  for_each_problem(problem.images * bands, work, make_storage, [&](int64_t k, Workspace& memory) {
    const int64_t image = k / bands, band = k % bands;
    const int64_t first = rows * band / bands, count = rows * (band + 1) / bands - first;
    kernel.convolve(problem, image, first, count, memory.reserve(kernel.bytes(count)));
  });
}

at::Tensor resnet_stem(const at::Tensor& images, const at::Tensor& weight, const at::Tensor& bias,
                       const std::optional<at::Tensor>& extents) {
  const InferenceKernels* kernels = inference_kernels(images);
  if (!kernels) {
    const char* name = "detr_fast::resnet_stem";
    return call_reference(name, images, weight, bias, extents)[0].toTensor();
  }
  const auto quarter = [&](int k) { return half_of(half_of(images.size(k))); };
  at::Tensor out = empty_outputs(images, {images.size(0), bias.size(0), quarter(2), quarter(3)});
  if (out.numel() == 0) return out;
  const at::Tensor input = images.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor packed = weight.contiguous(), shift = bias.contiguous();
  const at::Tensor own = extents ? extents->contiguous() : at::Tensor();
  StemProblem problem{};
  problem.input = input.const_data_ptr();
  problem.weight = packed.const_data_ptr();
  problem.bias = shift.const_data_ptr();
  problem.extents = extents ? own.const_data_ptr<int64_t>() : nullptr;
  problem.output = out.mutable_data_ptr();
  problem.images = images.size(0);
  problem.height = images.size(2);
  problem.width = images.size(3);
  problem.outputs = bias.size(0);
  run(kernels->stem, problem, out.size(2));
  return out;
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  if (cpu_uses_avx512()) m.impl("resnet_stem", resnet_stem);
}

}  // namespace
}  // namespace detr_fast
