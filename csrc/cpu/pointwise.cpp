// pointwise_convolution and pointwise_convolution_ on the CPU: the contract is in
// detr_fast/ops/pointwise.py.

#include "pointwise.h"

#include <torch/library.h>

#include <algorithm>

#include "convolution.h"
#include "kernel_choice.h"
#include "parallel.h"

namespace detr_fast {
namespace {

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Divides the pixels into blocks of at most kMostPixels for whichever thread is free; where they
// make fewer blocks than there are threads, the outputs, too.
void run(PointwiseKernel convolve, const PointwiseProblem& problem, int64_t pixels) {
  const int64_t tiles = divided_up(pixels, kTileRows), strips = problem.outputs / kOutputStep;
  const int64_t threads = at::get_num_threads();
  // As many for each thread.
  const int64_t wanted = divided_up(divided_up(pixels, kMostPixels), threads) * threads;
  const int64_t blocks = std::min(wanted, tiles);
  const int64_t parts = std::min(divided_up(threads, blocks), strips);
  const auto pixel = [&](int64_t k) { return std::min(tiles * k / blocks * kTileRows, pixels); };
  const auto strip = [&](int64_t k) { return strips * k / parts; };
  const auto nothing = [] { return 0; };
  for_each_problem(blocks * parts, pixels * problem.outputs, nothing, [&](int64_t k, int) {
    const int64_t block = k / parts, part = k % parts, first = pixel(block);
    convolve(problem, {first, pixel(block + 1) - first, strip(part), strip(part + 1)});
  });
}

// Writes to `out` or, where `add`, adds to what it holds; it is channels last.
void convolve(PointwiseKernel kernel, const at::Tensor& x, const at::Tensor& weight,
              const at::Tensor& bias, int64_t stride, bool relu, bool add, at::Tensor& out) {
  if (out.numel() == 0) return;
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor packed = weight.contiguous(), shift = bias.contiguous();
  PointwiseProblem problem{};
  problem.input = input.const_data_ptr();
  problem.weight = packed.const_data_ptr();
  problem.bias = shift.const_data_ptr();
  problem.output = out.mutable_data_ptr();
  problem.height = x.size(2);
  problem.width = x.size(3);
  problem.output_height = out.size(2);
  problem.output_width = out.size(3);
  problem.stride = stride;
  problem.channels = x.size(1);
  problem.outputs = out.size(1);
  problem.add = add;
  problem.relu = relu;
  run(kernel, problem, out.numel() / problem.outputs);
}

at::Tensor pointwise_convolution(const at::Tensor& x, const at::Tensor& weight,
                                 const at::Tensor& bias, int64_t stride, bool relu) {
  const InferenceKernels* kernels = inference_kernels(x);
  if (!kernels) {
    const char* name = "detr_fast::pointwise_convolution";
    return call_reference(name, x, weight, bias, stride, relu)[0].toTensor();
  }
  const auto side = [&](int64_t dim) { return divided_up(x.size(dim), stride); };
  at::Tensor out = empty_outputs(x, {x.size(0), bias.size(0), side(2), side(3)});
  convolve(kernels->pointwise, x, weight, bias, stride, relu, false, out);
  return out;
}

void pointwise_convolution_(at::Tensor& other, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, int64_t stride, bool relu) {
  const InferenceKernels* kernels = inference_kernels(x);
  if (!kernels) {
    call_reference("detr_fast::pointwise_convolution_", other, x, weight, bias, stride, relu);
    return;
  }
  add_in_place(other, [&](at::Tensor& sum) {
    convolve(kernels->pointwise, x, weight, bias, stride, relu, true, sum);
  });
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  if (cpu_uses_avx512()) {
    m.impl("pointwise_convolution", pointwise_convolution);
    m.impl("pointwise_convolution_", pointwise_convolution_);
  }
}

}  // namespace
}  // namespace detr_fast
