// The attention kernels for CPUs: one image and head at a time, its valid keys packed once.

#pragma once

#include <cstdint>

namespace detr_fast {

// Head sizes that kernels take: multiples of the first up to the second.
constexpr int64_t kHeadSizeStep = 16, kMostHeadSize = 128;

// Queries that one call takes at most. Fixed, as every block is: what a query gives depends neither
// on the other images nor on the number of threads.
constexpr int64_t kQueryBlock = 48;

// The keys and values of one head, of which those within the image count: in a grid in row-major
// order the first `row` of every `columns`, `count` in all.
struct HeadKeys {
  const void *key, *value;           // of the first
  int64_t key_stride, value_stride;  // from one to the next, in elements
  int64_t count, row, columns;
  int64_t head_size;
};

struct QueryBlock {
  const void* query;                 // of the first
  void* out;                         // of the first
  float* logsumexp;                  // to base 2, one a query
  int64_t query_stride, out_stride;  // from one to the next, in elements
  int64_t count;
};

struct AttentionKernel {
  // Words of 32 bits that packed keys and values take.
  int64_t (*packed_words)(int64_t keys, int64_t head_size);
  void (*pack)(const HeadKeys&, uint32_t* packed);
  // With at least one key.
  void (*attend)(const QueryBlock&, const HeadKeys&, const uint32_t* packed);
};

}  // namespace detr_fast
