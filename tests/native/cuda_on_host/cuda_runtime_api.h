// Enough of CUDA to run kernels on the host, one block after another. The threads of a block are
// fibers of one host thread: which of them runs next is drawn by chance, and it runs up to the next
// barrier or exchange. So an exchange in which not all threads take part is found, and where a
// barrier is missing, some order of the threads finds stale or overwritten values.

#pragma once

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using cudaStream_t = void*;

struct __align__(16) uint4 {
  unsigned x, y, z, w;
};

namespace detr_fast {
extern char block_memory[];
}

namespace cuda_on_host {

constexpr int kWarp = 32;
constexpr int kMostSharedBytes = 227 * 1024;

struct Index {
  unsigned x;
};

enum class Wait { kNothing, kWarp, kBlock, kForEver };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Wait wait = Wait::kNothing;
  int place = 0;  // in the source, of the exchange or barrier it waits at
  int exchanges = 0;
};

class Block;
inline Block* block = nullptr;
inline Index thread_index, block_index, block_dim;

class Block {
 public:
  Block(int threads, std::function<void()> kernel, std::mt19937& random)
      : kernel_(std::move(kernel)), random_(random), threads_(threads) {}

  void run() {
    block = this;
    for (Thread& thread : threads_) {
      thread.stack.reset(new char[kStack]);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = kStack;
      thread.context.uc_link = &scheduler_;
      makecontext(&thread.context, &Block::begin, 0);
    }
    while (step()) {
    }
  }

  void wait(Wait what, int place) {
    Thread& self = threads_[thread_index.x];
    self.wait = what;
    self.place = place;
    swapcontext(&self.context, &scheduler_);
  }

  int votes = 0;  // against, at the barrier that counts them

  // What each thread of the warp brings, after all of them have.
  template <class T>
  const T* exchange(T value, int place) {
    Thread& self = threads_[thread_index.x];
    const int warp = thread_index.x / kWarp;
    // A late thread may still read what was exchanged before.
    const int half = self.exchanges++ % 2;
    T* values = reinterpret_cast<T*>(values_.data() + (warp * 2 + half) * kWarp * sizeof(double));
    values[thread_index.x % kWarp] = value;
    wait(Wait::kWarp, place);
    return values;
  }

 private:
  static constexpr int kStack = 1 << 16;

  static void begin() {
    block->kernel_();
    block->threads_[thread_index.x].wait = Wait::kForEver;
  }

  bool step() {
    release();
    std::vector<unsigned> ready;
    bool done = true;
    for (unsigned k = 0; k < threads_.size(); ++k) {
      if (threads_[k].wait == Wait::kNothing) ready.push_back(k);
      done &= threads_[k].wait == Wait::kForEver;
    }
    if (done) return false;
    if (ready.empty()) {
      std::fprintf(stderr, "threads of block %u wait for each other for ever\n", block_index.x);
      std::abort();
    }
    std::shuffle(ready.begin(), ready.end(), random_);
    for (unsigned k : ready) {
      thread_index.x = k;
      swapcontext(&scheduler_, &threads_[k].context);
      // One warp may run far ahead of the others.
      if (random_() % 4 == 0) break;
    }
    return true;
  }

  void release() {
    bool all_at_barrier = true;
    for (size_t first = 0; first < threads_.size(); first += kWarp) {
      bool together = true;
      for (size_t k = first; k < first + kWarp; ++k) {
        together &= threads_[k].wait == Wait::kWarp && threads_[k].place == threads_[first].place;
        all_at_barrier &= threads_[k].wait == Wait::kBlock || threads_[k].wait == Wait::kForEver;
      }
      for (size_t k = first; together && k < first + kWarp; ++k) {
        threads_[k].wait = Wait::kNothing;
      }
    }
    for (Thread& thread : threads_) {
      if (all_at_barrier && thread.wait == Wait::kBlock) thread.wait = Wait::kNothing;
    }
  }

  std::function<void()> kernel_;
  std::mt19937& random_;
  std::vector<Thread> threads_;
  ucontext_t scheduler_;
  std::vector<char> values_ =
      std::vector<char>(threads_.size() * 2 * sizeof(double));
};

// Runs `kernel` for each block; shared memory holds NaN first.
inline void launch(unsigned blocks, int threads, const std::function<void()>& kernel,
                   std::mt19937& random) {
  block_dim.x = threads;
  for (block_index.x = 0; block_index.x < blocks; ++block_index.x) {
    std::memset(detr_fast::block_memory, 0xff, kMostSharedBytes);
    Block(threads, kernel, random).run();
  }
}

template <class T>
T shuffle_xor(T value, int mask, int place) {
  return block->exchange(value, place)[(thread_index.x % kWarp) ^ mask];
}

inline unsigned reduce_min(unsigned value, int place) {
  const unsigned* values = block->exchange(value, place);
  unsigned least = value;
  for (int k = 0; k < kWarp; ++k) least = values[k] < least ? values[k] : least;
  return least;
}

inline int all_in_block(bool value) {
  block->votes += value ? 0 : 1;
  block->wait(Wait::kBlock, __LINE__);
  const bool all = block->votes == 0;
  block->wait(Wait::kBlock, __LINE__);
  if (thread_index.x == 0) block->votes = 0;
  block->wait(Wait::kBlock, __LINE__);
  return all;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace cuda_on_host

#define threadIdx cuda_on_host::thread_index
#define blockIdx cuda_on_host::block_index
#define blockDim cuda_on_host::block_dim
#define __syncthreads() \
  cuda_on_host::block->wait(cuda_on_host::Wait::kBlock, __LINE__)
#define __syncthreads_and(value) cuda_on_host::all_in_block(value)
#define __syncwarp() cuda_on_host::block->wait(cuda_on_host::Wait::kWarp, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) cuda_on_host::shuffle_xor(value, lanes, __LINE__)
#define __reduce_min_sync(mask, value) cuda_on_host::reduce_min(value, __LINE__)
#define __double_as_longlong cuda_on_host::bits_as<long long, double>
#define __longlong_as_double cuda_on_host::bits_as<double, long long>
#define __int_as_float cuda_on_host::bits_as<float, int>
