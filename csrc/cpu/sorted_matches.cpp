// sorted_matches on the CPU: the contract is in detr_fast/ops/sorted_matches.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "matching_operations.h"

namespace detr_fast {

void sort_matches(const int64_t* matched, int64_t groups, int64_t targets, int64_t first,
                  int64_t last, std::vector<MatchedPair>& pairs) {
  pairs.clear();
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t t = first; t < last; ++t) {
      const int64_t query = matched[g * targets + t];
      if (query >= 0) pairs.emplace_back(query, t - first);
    }
  }
  std::sort(pairs.begin(), pairs.end());
}

namespace {

std::tuple<at::Tensor, at::Tensor> sorted_matches(const at::Tensor& matched,
                                                  const at::Tensor& offsets) {
  const at::Tensor dense = matched.contiguous(), dense_offsets = offsets.contiguous();
  const int64_t groups = dense.size(0), targets = dense.size(1);
  const int64_t images = dense_offsets.size(0) - 1;
  const int64_t* bounds = dense_offsets.const_data_ptr<int64_t>();
  bool divided = bounds[0] == 0 && bounds[images] == targets;
  for (int64_t b = 0; b < images; ++b) divided &= bounds[b] <= bounds[b + 1];
  TORCH_CHECK_VALUE(divided, "offsets are ", at::IntArrayRef(bounds, images + 1),
                    ", but must ascend from 0 to the number of targets, ", targets, ".");

  at::Tensor queries = at::empty({groups * targets}, matched.options());
  at::Tensor places = at::empty({groups * targets}, matched.options());
  int64_t* query = queries.mutable_data_ptr<int64_t>();
  int64_t* place = places.mutable_data_ptr<int64_t>();
  std::vector<MatchedPair> pairs;
  for (int64_t b = 0; b < images; ++b) {
    sort_matches(dense.const_data_ptr<int64_t>(), groups, targets, bounds[b], bounds[b + 1], pairs);
    pairs.resize(groups * (bounds[b + 1] - bounds[b]), {-1, -1});
    for (const auto& [q, t] : pairs) {
      *query++ = q;
      *place++ = t;
    }
  }
  return {queries, places};
}

TORCH_LIBRARY_IMPL(detr_fast, CPU, m) {
  m.impl("sorted_matches", sorted_matches);
}

}  // namespace
}  // namespace detr_fast
