// The CPU kernels, compiled once for each instruction set and chosen when first used.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../lap.h"
#include "../matching_cost.h"

namespace detr_fast {

// The predictions of one set, or a group of them, for one image, and the image's targets.
template <class T>
struct ImageMatching {
  const T* logits;        // [queries, classes]
  const T* boxes;         // [queries, 4], cx cy w h
  const int64_t* labels;  // [targets], in [0, classes)
  const T* target_boxes;  // [targets, 4]
  const T* extra;         // [targets, queries], rows `extra_stride` apart; null for none
  int64_t extra_stride;
  int64_t queries, classes, targets;
};

struct MatchingOptions {
  bool focal;  // else softmax
  FocalParameters focal_parameters;
  CostWeights weights;
  std::optional<CostRange> range;  // none: costs stay as they are
};

// Where an assignment and what proves it are written.
struct Certificate {
  int64_t* columns_of_rows;  // [rows]
  double* row_duals;         // [rows]
  double* column_duals;      // [columns]
  double* gap;
};

// Memory for one thread's problems, aligned for every vector; grows, and keeps what it has.
class Workspace {
 public:
  void* reserve(size_t bytes);

 private:
  std::unique_ptr<char[]> memory_;
  size_t size_ = 0;
};

struct CpuKernels {
  const char* capability;

  // Assign rows and columns of a matrix of any shape: columns_of_rows[i] is the column of row i, -1
  // for none, and -1 for every row unless the status is kOptimal. They allocate only what
  // `workspace` lacks of assignment_bytes.
  LapStatus (*assign_float)(const CostMatrix<float>&, int64_t* columns_of_rows, Workspace&);
  LapStatus (*assign_double)(const CostMatrix<double>&, int64_t* columns_of_rows, Workspace&);

  // The same with duals and gap, which are not written unless the status is kOptimal.
  LapStatus (*certify_float)(const CostMatrix<float>&, const Certificate&, Workspace&);
  LapStatus (*certify_double)(const CostMatrix<double>&, const Certificate&, Workspace&);
  size_t (*assignment_bytes)(int rows, int columns, size_t cost_bytes, bool strided);

  // Write the cost of target t with query q to cost[t * queries + q]. `storage` has
  // matching_cost_bytes, aligned for the type of the costs.
  void (*matching_cost_float)(const ImageMatching<float>&, const MatchingOptions&, float* cost,
                              void* storage);
  void (*matching_cost_double)(const ImageMatching<double>&, const MatchingOptions&, double* cost,
                               void* storage);
  size_t (*matching_cost_bytes)(int64_t queries, size_t cost_bytes);
};

// The kernels that this CPU can run, the fastest last.
std::vector<const CpuKernels*> available_cpu_kernels();

// The fastest of them, or the one that the environment variable DETR_FAST_CPU_CAPABILITY names:
// avx512, avx2 or portable.
const CpuKernels& cpu_kernels();

// Whether the choice is avx512, for the kernels of attention and convolution, which know no other;
// and whether this CPU multiplies bfloat16 there, too.
bool cpu_uses_avx512();
bool cpu_uses_avx512bf16();

const CpuKernels& portable_kernels();
const CpuKernels& avx2_kernels();
const CpuKernels& avx512_kernels();

}  // namespace detr_fast
