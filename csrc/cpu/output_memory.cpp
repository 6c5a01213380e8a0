#include "output_memory.h"

#include <c10/core/impl/alloc_cpu.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <utility>

namespace detr_fast {
namespace {

thread_local std::shared_ptr<OutputMemory> in_use;

size_t bytes_of(at::IntArrayRef shape, const at::TensorOptions& options) {
  return c10::multiply_integers(shape) * options.dtype().itemsize();
}

}  // namespace

OutputMemory::~OutputMemory() {
  for (const auto& [bytes, block] : free_) c10::free_cpu(block.start);
}

at::Tensor OutputMemory::empty(at::IntArrayRef shape, const at::TensorOptions& options,
                               at::MemoryFormat format) {
  const Block block = take(bytes_of(shape, options));
  const auto done = [self = shared_from_this(), block](void*) { self->give_back(block); };
  if (format == at::MemoryFormat::Contiguous) {
    return at::from_blob(block.start, shape, done, options);
  }
  const auto strides = c10::get_channels_last_strides_2d(shape);
  return at::from_blob(block.start, shape, strides, done, options);
}

size_t OutputMemory::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return held_;
}

// The smallest free block that is large enough. With the same outputs again every one finds its
// block; with smaller ones none is needed.
OutputMemory::Block OutputMemory::take(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = free_.lower_bound(bytes);
  if (found != free_.end()) {
    const Block block = found->second;
    free_.erase(found);
    used_ += block.bytes;
    most_used_ = std::max(most_used_, used_);
    return block;
  }
  // Larger outputs than before leave blocks that are too small for them.
  most_used_ = std::max(most_used_, used_ + bytes);
  while (!free_.empty() && held_ + bytes > 2 * most_used_) {
    const auto smallest = free_.begin();
    c10::free_cpu(smallest->second.start);
    held_ -= smallest->first;
    free_.erase(smallest);
  }
  const Block block{c10::alloc_cpu(bytes), bytes};
  held_ += bytes;
  used_ += bytes;
  return block;
}

void OutputMemory::give_back(const Block& block) {
  const std::lock_guard<std::mutex> lock(mutex_);
  used_ -= block.bytes;
  free_.emplace(block.bytes, block);
}

std::shared_ptr<OutputMemory> use_output_memory(std::shared_ptr<OutputMemory> memory) {
  return std::exchange(in_use, std::move(memory));
}

at::Tensor new_output(at::IntArrayRef shape, const at::TensorOptions& options,
                      at::MemoryFormat format) {
  if (in_use && bytes_of(shape, options) >= kLeastKeptBytes) {
    return in_use->empty(shape, options, format);
  }
  return at::empty(shape, options.memory_format(format));
}

}  // namespace detr_fast

void bind_output_memory(pybind11::module_& module) {
  using detr_fast::OutputMemory;
  pybind11::class_<OutputMemory, std::shared_ptr<OutputMemory>>(module, "OutputMemory")
      .def(pybind11::init<>())
      .def_property_readonly("bytes", &OutputMemory::bytes);
  module.def("use_output_memory", &detr_fast::use_output_memory);
}
