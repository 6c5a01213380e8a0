// One parallel loop over problems of different sizes.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

namespace detr_fast {

// Below this many matrix entries in all, waking threads costs more than they save.
constexpr int64_t kEntriesWorthThreads = 1 << 14;

// Calls solve(problem, local) for problems 0 to count - 1, taken in this order by whichever thread
// is free; each thread makes its own `local` first. `entries` is the work in all.
template <class MakeLocal, class Solve>
void for_each_problem(int64_t count, int64_t entries, const MakeLocal& make_local,
                      const Solve& solve) {
  if (count == 0) return;
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    auto local = make_local();
    for (int64_t k = next++; k < count; k = next++) solve(k, local);
  };
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count);
  if (threads == 1 || entries < kEntriesWorthThreads) {
    work(0, 1);
  } else {
    at::parallel_for(0, threads, 1, work);
  }
}

// The numbers 0 to count - 1, those with the most work first, so that no thread is left with a
// large one at the end.
template <class Work>
std::vector<int64_t> largest_first(int64_t count, const Work& work) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return work(a) > work(b); });
  return order;
}

}  // namespace detr_fast
