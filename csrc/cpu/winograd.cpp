// winograd_convolution and winograd_convolution_ on the CPU: the contract is in
// detr_fast/ops/winograd.py.

#include "winograd.h"

#include <torch/library.h>

#include <algorithm>

#include "convolution.h"
#include "kernel_choice.h"
#include "parallel.h"

namespace detr_fast {
namespace {

// Divides the tiles into blocks of at most kMostTiles for whichever thread is free.
void run(const WinogradKernel& kernel, const WinogradProblem& problem) {
  const int64_t tiles = problem.images * problem.tile_rows * problem.tile_columns;
  const int64_t groups = (tiles + kTileRows - 1) / kTileRows;
  const int64_t threads = at::get_num_threads();
  const int64_t needed = (tiles + kMostTiles - 1) / kMostTiles;
  // As many for each thread, but none that is empty.
  const int64_t blocks = std::min((needed + threads - 1) / threads * threads, groups);
  const auto start = [&](int64_t k) { return std::min(groups * k / blocks * kTileRows, tiles); };
  const auto make_memory = [] { return Workspace(); };
  for_each_problem(blocks, tiles * problem.outputs, make_memory, [&](int64_t k, Workspace& memory) {
    const int64_t first = start(k), count = start(k + 1) - first;
    kernel.convolve(problem, first, count, memory.reserve(kernel.bytes(problem, count)));
  });
}

// Writes to `out` or, where `add`, adds to what it holds; both are channels last.
void convolve(const WinogradKernel& kernel, const at::Tensor& x, const at::Tensor& weight,
              const at::Tensor& bias, int64_t dilation, bool relu, bool add, at::Tensor& out) {
  if (out.numel() == 0) return;
  const at::Tensor input = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor packed = weight.contiguous(), shift = bias.contiguous();
  const auto tiles = [&](int64_t side) {
    return (side + 2 * dilation - 1) / (2 * dilation) * dilation;
  };
  WinogradProblem problem{};
  problem.input = input.const_data_ptr();
  problem.weight = packed.const_data_ptr();
  problem.bias = shift.const_data_ptr();
  problem.output = out.mutable_data_ptr();
  problem.images = x.size(0);
  problem.channels = x.size(1);
  problem.height = x.size(2);
  problem.width = x.size(3);
  problem.outputs = out.size(1);
  problem.dilation = dilation;
  problem.tile_rows = tiles(problem.height);
  problem.tile_columns = tiles(problem.width);
  problem.add = add;
  problem.relu = relu;
  run(kernel, problem);
}

at::Tensor winograd_convolution(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& bias, int64_t dilation, bool relu) {
  const InferenceKernels* kernels = inference_kernels(x);
  if (!kernels) {
    const char* name = "detr_fast::winograd_convolution";
    return call_reference(name, x, weight, bias, dilation, relu)[0].toTensor();
  }
  at::Tensor out = empty_outputs(x, {x.size(0), bias.size(0), x.size(2), x.size(3)});
  convolve(kernels->winograd, x, weight, bias, dilation, relu, false, out);
  return out;
}

void winograd_convolution_(at::Tensor& other, const at::Tensor& x, const at::Tensor& weight,
                           const at::Tensor& bias, int64_t dilation, bool relu) {
  const InferenceKernels* kernels = inference_kernels(x);
  if (!kernels) {
    call_reference("detr_fast::winograd_convolution_", other, x, weight, bias, dilation, relu);
    return;
  }
  add_in_place(other, [&](at::Tensor& sum) {
    convolve(kernels->winograd, x, weight, bias, dilation, relu, true, sum);
  });
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  if (cpu_uses_avx512()) {
    m.impl("winograd_convolution", winograd_convolution);
    m.impl("winograd_convolution_", winograd_convolution_);
  }
}

}  // namespace
}  // namespace detr_fast
