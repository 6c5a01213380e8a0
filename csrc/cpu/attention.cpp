// attention on the CPU: the contract is in detr_fast/ops/attention.py. There are kernels for the
// forward pass without dropout; other problems that reach this operation run its reference.

#include "attention.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "kernel_choice.h"
#include "output_memory.h"
#include "parallel.h"

namespace detr_fast {
namespace {

using Result = std::tuple<at::Tensor, at::Tensor>;

bool fits_a_kernel(const at::Tensor& query, double dropout) {
  const int64_t size = query.size(3);
  return dropout == 0 && size > 0 && size % kHeadSizeStep == 0 && size <= kMostHeadSize;
}

// Entries of a head side by side, as the kernels read them.
at::Tensor dense_heads(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

// Where a row of a head lies, in bytes from the start of the tensor.
int64_t offset_of(const at::Tensor& x, int64_t image, int64_t head, int64_t row) {
  return (image * x.stride(0) + head * x.stride(1) + row * x.stride(2)) * x.element_size();
}

const char* row_of(const at::Tensor& x, int64_t image, int64_t head, int64_t row) {
  return static_cast<const char*>(x.const_data_ptr()) + offset_of(x, image, head, row);
}

// The valid keys of every (image, head), in this order.
std::vector<HeadKeys> heads_of(const at::Tensor& key, const at::Tensor& value,
                               const std::optional<at::Tensor>& extents, int64_t columns) {
  const int64_t images = key.size(0), heads = key.size(1), keys = key.size(2);
  std::vector<HeadKeys> result;
  for (int64_t b = 0; b < images; ++b) {
    int64_t rows = 1, row = keys;
    if (extents) {
      const auto valid = extents->accessor<int64_t, 2>()[b];
      rows = std::clamp<int64_t>(valid[0], 0, keys / columns);
      row = std::clamp<int64_t>(valid[1], 0, columns);
    }
    for (int64_t h = 0; h < heads; ++h) {
      result.push_back({row_of(key, b, h, 0), row_of(value, b, h, 0), key.stride(2),
                        value.stride(2), rows * row, row, extents ? columns : keys, key.size(3)});
    }
  }
  return result;
}

Result attend_all(const AttentionKernel& kernel, const at::Tensor& query, const at::Tensor& key,
                  const at::Tensor& value, const std::optional<at::Tensor>& extents,
                  int64_t columns) {
  const int64_t images = query.size(0), heads = query.size(1), queries = query.size(2);
  const int64_t size = query.size(3);
  at::Tensor out = new_output({images, queries, heads, size}, query.options()).transpose(1, 2);
  at::Tensor logsumexp = at::empty({images, heads, queries}, query.options().dtype(at::kFloat));
  char* out_to = static_cast<char*>(out.mutable_data_ptr());
  float* logsumexp_to = logsumexp.mutable_data_ptr<float>();
  const std::vector<HeadKeys> all = heads_of(key, value, extents, columns);

  // Each head starts on a cache line.
  std::vector<int64_t> starts(1, 0);
  int64_t pairs = 0;
  for (const HeadKeys& head : all) {
    starts.push_back(starts.back() + (kernel.packed_words(head.count, size) + 15) / 16 * 16);
    pairs += head.count * queries;
  }
  Workspace workspace;
  auto* packed = static_cast<uint32_t*>(workspace.reserve(starts.back() * sizeof(uint32_t)));
  const auto nothing = [] { return nullptr; };
  const int64_t count = static_cast<int64_t>(all.size());
  for_each_problem(count, starts.back(), nothing, [&](int64_t k, std::nullptr_t) {
    kernel.pack(all[k], packed + starts[k]);
  });

  const int64_t blocks = (queries + kQueryBlock - 1) / kQueryBlock;
  for_each_problem(count * blocks, pairs, nothing, [&](int64_t k, std::nullptr_t) {
    const int64_t head = k / blocks, first = k % blocks * kQueryBlock;
    const int64_t here = std::min(queries - first, kQueryBlock);
    const int64_t b = head / heads, h = head % heads;
    float* sums = logsumexp_to + head * queries + first;
    if (all[head].count > 0) {
      const QueryBlock block{row_of(query, b, h, first), out_to + offset_of(out, b, h, first), sums,
                             query.stride(2), out.stride(2), here};
      kernel.attend(block, all[head], packed + starts[head]);
      return;
    }
    std::fill_n(sums, here, -std::numeric_limits<float>::infinity());
    for (int64_t i = first; i < first + here; ++i) {
      std::memset(out_to + offset_of(out, b, h, i), 0, size * out.element_size());
    }
  });
  return {out, logsumexp};
}

Result attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const std::optional<at::Tensor>& extents, int64_t columns, double dropout,
                 const std::optional<at::Tensor>& seed) {
  const InferenceKernels* kernels = inference_kernels(query);
  if (kernels && fits_a_kernel(query, dropout)) {
    return attend_all(kernels->attention, dense_heads(query), dense_heads(key), dense_heads(value),
                      extents, columns);
  }
  const auto results = call_reference("detr_fast::attention", query, key, value, extents, columns,
                                      dropout, seed);
  return {results[0].toTensor(), results[1].toTensor()};
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  if (cpu_uses_avx512()) m.impl("attention", attention);
}

}  // namespace
}  // namespace detr_fast
