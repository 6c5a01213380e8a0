// Memory of outputs that are gone, kept for those to come.
//
// The C library takes large blocks from the system, whose pages are cleared one by one as they are
// first written, and gives them back as soon as they are free. Of a network that runs again and
// again these pages take a share of the time.

#pragma once

#include <ATen/ATen.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>

namespace detr_fast {

// From here on memory is kept; what is smaller the C library keeps anyway.
constexpr size_t kLeastKeptBytes = 1 << 20;

// Used by any number of threads. Tensors may outlive it: what they take is released with the last.
class OutputMemory : public std::enable_shared_from_this<OutputMemory> {
 public:
  ~OutputMemory();

  // A tensor on the CPU whose memory comes back here when it is gone. `format` is contiguous or
  // channels last.
  at::Tensor empty(at::IntArrayRef shape, const at::TensorOptions& options,
                   at::MemoryFormat format);

  // Held from the system, in use or not; never more than twice what was in use at once.
  size_t bytes() const;

 private:
  struct Block {
    void* start;
    size_t bytes;
  };
  Block take(size_t bytes);
  void give_back(const Block& block);

  mutable std::mutex mutex_;
  std::multimap<size_t, Block> free_;  // by their bytes
  size_t held_ = 0, used_ = 0, most_used_ = 0;
};

// Makes new outputs of this thread come from `memory`, which may be null; returns where they came
// from before.
std::shared_ptr<OutputMemory> use_output_memory(std::shared_ptr<OutputMemory> memory);

// A new output on the CPU, from the memory in use where it is large.
at::Tensor new_output(at::IntArrayRef shape, const at::TensorOptions& options,
                      at::MemoryFormat format = at::MemoryFormat::Contiguous);

}  // namespace detr_fast
