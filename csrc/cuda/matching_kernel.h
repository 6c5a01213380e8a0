// The kernel that writes matching costs, each in the same bits as on a CPU. A block takes the
// queries of a tile in one set and image: first the softmax of each query, 16 threads a query as
// there are parts of its sum, then a warp for each target and a thread for each query.

#pragma once

#include <cuda_fp16.h>

#include "block.h"
#include "matching.h"

namespace detr_fast {

constexpr int kTile = kWarpSize;
constexpr int kMatchingThreads = 128;

template <class Number>
struct NumberReader;
template <>
struct NumberReader<float> {
  __device__ static float read(const void* data, long long i) {
    return static_cast<const float*>(data)[i];
  }
};
template <>
struct NumberReader<double> {
  __device__ static double read(const void* data, long long i) {
    return static_cast<const double*>(data)[i];
  }
};
template <>
struct NumberReader<__half> {
  __device__ static float read(const void* data, long long i) {
    return __half2float(static_cast<const __half*>(data)[i]);
  }
};
struct BFloat16;
template <>
struct NumberReader<BFloat16> {
  __device__ static float read(const void* data, long long i) {
    return __int_as_float(static_cast<const unsigned short*>(data)[i] << 16);
  }
};

template <class T>
__device__ T read_number(const Numbers& numbers, long long i) {
  switch (numbers.type) {
    case NumberType::kHalf: return static_cast<T>(NumberReader<__half>::read(numbers.data, i));
    case NumberType::kBFloat16:
      return static_cast<T>(NumberReader<BFloat16>::read(numbers.data, i));
    case NumberType::kFloat: return static_cast<T>(NumberReader<float>::read(numbers.data, i));
    default: return static_cast<T>(NumberReader<double>::read(numbers.data, i));
  }
}

template <class T>
__device__ CostBox<T> read_box(const Numbers& boxes, long long start, long long stride) {
  return cost_box(read_number<T>(boxes, start), read_number<T>(boxes, start + stride),
                  read_number<T>(boxes, start + 2 * stride),
                  read_number<T>(boxes, start + 3 * stride));
}

// See kSoftmaxParts.
template <class T>
struct SoftmaxStatistics {
  T largest, inverse;
};

// Of one query by the threads of half a warp, each with the part of its place.
template <class T, class Logit>
__device__ SoftmaxStatistics<T> softmax_of_half_warp(const Numbers& logits, long long start,
                                                     int classes) {
  const long long stride = logits.strides[3];
  const int part = threadIdx.x % kSoftmaxParts;
  const auto logit = [&](int c) -> T {
    return NumberReader<Logit>::read(logits.data, start + c * stride);
  };
  T high = logit(0), sum = 0;
#pragma unroll 4
  for (int c = part; c < classes; c += kSoftmaxParts) high = larger(high, logit(c));
  for (int half = kSoftmaxParts / 2; half > 0; half /= 2) {
    high = larger(high, __shfl_xor_sync(kWholeWarp, high, half));
  }
  const int even = classes / kSoftmaxParts * kSoftmaxParts, rest = classes - even;
#pragma unroll 4
  for (int c = part; c < even; c += kSoftmaxParts) sum += exp_of_difference(logit(c), high);
  if (part >= kSoftmaxParts - rest) {
    sum += exp_of_difference(logit(classes - kSoftmaxParts + part), high);
  }
  for (int half = kSoftmaxParts / 2; half > 0; half /= 2) {
    sum += __shfl_xor_sync(kWholeWarp, sum, half);
  }
  return {high, T(1) / sum};
}

template <class T>
__device__ T focal_term_of(T logit, const FocalParameters& focal) {
  const bool square = focal.gamma == 2;
  if (focal.eps == 0) {
    return square ? focal_term<false, true>(logit, focal) : focal_term<false, false>(logit, focal);
  }
  return square ? focal_term<true, true>(logit, focal) : focal_term<true, false>(logit, focal);
}

// Where the costs of an image lie, for its rows are queries if there are more targets than queries.
struct CostLayout {
  long long start;  // of the image's costs
  long long target_stride, query_stride;
};

template <class T>
__device__ CostLayout layout_of(const MatchingBatch<T>& batch, int set, int first, int count) {
  const long long start =
      (static_cast<long long>(set) * batch.targets + first) * batch.queries;
  const bool turned = batch.problems && count > batch.queries / batch.groups;
  if (turned) return {start, 1, count};
  return {start, batch.queries, 1};
}

// The problem of one group.
template <class T>
__device__ AssignmentProblem<T> problem_of_group(const MatchingBatch<T>& batch, int set, int group,
                                                 int first, int count, int room) {
  const int queries = batch.queries / batch.groups, skipped = group * queries;
  const CostLayout layout = layout_of(batch, set, first, count);
  const bool turned = count > queries;
  const CostMatrix<T> cost{batch.cost + layout.start + skipped * layout.query_stride,
                           turned ? layout.query_stride : layout.target_stride, 1,
                           turned ? queries : count, turned ? count : queries};
  int64_t* answer = batch.answer +
                    (static_cast<long long>(set) * batch.groups + group) * batch.targets + first;
  return {cost, turned, answer, room, skipped};
}

template <class T, class Logit>
__global__ void __launch_bounds__(kMatchingThreads)
    matching_costs(const MatchingBatch<T> batch, const ImageTargets targets, int tiles) {
  const int tile = blockIdx.x % tiles, slot = blockIdx.x / tiles;
  const int set = slot / batch.images, place = slot % batch.images;
  const int image = batch.first_image + place;
  const int first = targets.first[place], room = targets.first[place + 1] - first;
  int count = targets.count[place];
  if (batch.counts) {
    // As size_within has it, with which the compiler for 10.0 spills two registers.
    const int64_t given = batch.counts[image];
    count = given < 0 ? 0 : given < room ? static_cast<int>(given) : room;
  }
  if (batch.problems && tile == 0) {
    for (int group = threadIdx.x; group < batch.groups; group += blockDim.x) {
      const int problem = (set * batch.groups + group) * batch.images + place;
      batch.problems[problem] = problem_of_group(batch, set, group, first, count, room);
    }
  }

  const int start = tile * kTile;
  const int in_tile = batch.queries - start < kTile ? batch.queries - start : kTile;
  const Numbers& logits = batch.logits;
  const long long image_logits = set * logits.strides[0] + image * logits.strides[1];
  T* largest = reinterpret_cast<T*>(block_memory);
  T* inverse = largest + kTile;
  if (!batch.focal && count > 0) {
    const int half_warps = blockDim.x / kSoftmaxParts;
    // Every half of a warp takes part in every turn: their shuffles name the whole warp.
    for (int k = 0; k < kTile; k += half_warps) {
      const int own = k + threadIdx.x / kSoftmaxParts;
      const int query = start + (own < in_tile ? own : 0);
      const auto statistics = softmax_of_half_warp<T, Logit>(
          logits, image_logits + query * logits.strides[2], batch.classes);
      if (own < in_tile && threadIdx.x % kSoftmaxParts == 0) {
        largest[own] = statistics.largest;
        inverse[own] = statistics.inverse;
      }
    }
  }
  __syncthreads();

  const int own = lane_of_warp(), query = start + own;
  if (own >= in_tile) return;
  const CostLayout layout = layout_of(batch, set, first, count);
  T* costs = batch.cost + layout.start + query * layout.query_stride;
  const Numbers& boxes = batch.boxes;
  const CostBox<T> box = read_box<T>(
      boxes, set * boxes.strides[0] + image * boxes.strides[1] + query * boxes.strides[2],
      boxes.strides[3]);
  const Numbers& extra = batch.extra;
  for (int t = warp_of_block(); t < count; t += warps_of_block()) {
    const long long target = first + t;
    const CostBox<T> target_box =
        read_box<T>(batch.target_boxes, target * batch.target_boxes.strides[0],
                    batch.target_boxes.strides[1]);
    const int64_t label = batch.labels[target * batch.label_stride];
    T term = static_cast<T>(__int_as_float(0x7fc00000));  // NaN, for a label without a class
    if (0 <= label && label < batch.classes) {
      const T logit = NumberReader<Logit>::read(
          logits.data, image_logits + query * logits.strides[2] + label * logits.strides[3]);
      term = batch.focal ? focal_term_of(logit, batch.focal_parameters)
                         : -exp_of_difference(logit, largest[own]) * inverse[own];
    }
    T cost = matching_cost(box, target_box, term, batch.weights);
    if (extra.data) {
      cost += read_number<T>(extra, set * extra.strides[0] + target * extra.strides[1] +
                                        query * extra.strides[2]);
    }
    costs[t * layout.target_stride] = batch.problems ? within_range(cost, batch.range) : cost;
  }
  if (batch.problems) return;
  for (int t = count + warp_of_block(); t < room; t += warps_of_block()) {
    costs[t * layout.target_stride] = 0;
  }
}

}  // namespace detr_fast
