// Solves the problems of a file with csrc/lap.h, alone: one lane, then several threads as lanes
// with both kinds of slots, and the CPU kernels of every instruction set that this machine has. All
// must agree on every index, and their cost with the optimum in the file.
//
//   lap_test FILE [LANES SLOTS] ...
//
// SLOTS is memory or registers. FILE holds, one after another: int32 rows, columns and bytes per
// entry; float64 optimum, NaN where there is no full matching; the entries, row by row. The exit
// status is 0 if all is well.

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "lap_lanes.h"
#ifdef WITH_CPU_KERNELS
#include "cpu/kernels.h"
#endif

namespace {

using namespace detr_fast;

struct Problem {
  int rows, columns, entry_bytes;
  double optimum;
  std::vector<float> floats;
  std::vector<double> doubles;
};

template <class T>
T read_value(std::FILE* file) {
  T value;
  if (std::fread(&value, sizeof value, 1, file) != 1) std::abort();
  return value;
}

std::vector<Problem> read_problems(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) std::abort();
  std::vector<Problem> problems;
  for (int rows; std::fread(&rows, sizeof rows, 1, file) == 1;) {
    Problem p;
    p.rows = rows;
    p.columns = read_value<int>(file);
    p.entry_bytes = read_value<int>(file);
    p.optimum = read_value<double>(file);
    for (long k = 0; k < static_cast<long>(p.rows) * p.columns; ++k) {
      if (p.entry_bytes == 4) {
        p.floats.push_back(read_value<float>(file));
      } else {
        p.doubles.push_back(read_value<double>(file));
      }
    }
    problems.push_back(p);
  }
  std::fclose(file);
  return problems;
}

// What the lanes of a team share besides the arrays of the problem.
struct Team {
  explicit Team(int count) : count(count), barrier(count), values(2 * count), indices(2 * count) {}

  int count;
  std::barrier<> barrier;
  std::vector<std::atomic<double>> values;
  std::vector<std::atomic<int>> indices;
  std::atomic<int> arrivals{0};
};

// Lanes as threads. argmin orders no other memory, like a warp's shuffle: relaxed atomics carry the
// values, and fences, which ThreadSanitizer does not see, make that sound. So a sync() that is
// missing in the algorithm is a data race to ThreadSanitizer.
class ThreadLanes {
 public:
  ThreadLanes(Team& team, int lane) : team_(team), lane_(lane) {}

  int lane() const { return lane_; }
  int count() const { return team_.count; }
  void sync() { team_.barrier.arrive_and_wait(); }

  void argmin(double& value, int& index) {
    const int half = (calls_ % 2) * team_.count;
    team_.values[half + lane_].store(value, std::memory_order_relaxed);
    team_.indices[half + lane_].store(index, std::memory_order_relaxed);
    fence();
    const int all = ++calls_ * team_.count;
    if (team_.arrivals.fetch_add(1, std::memory_order_relaxed) + 1 == all) {
      futex(FUTEX_WAKE, team_.count);
    }
    for (int arrived; (arrived = team_.arrivals.load(std::memory_order_relaxed)) < all;) {
      futex(FUTEX_WAIT, arrived);
    }
    fence();
    for (int k = half; k < half + team_.count; ++k) {
      const double other = team_.values[k].load(std::memory_order_relaxed);
      const int other_index = team_.indices[k].load(std::memory_order_relaxed);
      if (other < value || (other == value && other_index < index)) {
        value = other;
        index = other_index;
      }
    }
  }

 private:
  static void fence() {
#ifndef __SANITIZE_THREAD__
    std::atomic_thread_fence(std::memory_order_seq_cst);
#else
    asm volatile("mfence" ::: "memory");
#endif
  }

  // The system call itself: a lock or a condition variable would order memory.
  void futex(int operation, int value) {
    syscall(SYS_futex, &team_.arrivals, operation, value, nullptr, nullptr, 0);
  }

  Team& team_;
  int lane_;
  int calls_ = 0;
};

struct Answer {
  LapStatus status = LapStatus::kOptimal;
  std::vector<int> column_of_row;  // of the smaller side

  bool operator==(const Answer& other) const {
    return status == other.status &&
           (status != LapStatus::kOptimal || column_of_row == other.column_of_row);
  }
};

// The problem with the smaller side as rows.
template <class Cost>
CostMatrix<Cost> oriented(const Problem& p, const std::vector<Cost>& entries) {
  if (p.rows <= p.columns) return {entries.data(), p.columns, 1, p.rows, p.columns};
  return {entries.data(), 1, p.columns, p.columns, p.rows};
}

struct Arrays {
  Arrays(int rows, int columns)
      : column_of_row(rows),
        row_of_column(columns),
        predecessor(columns),
        v(columns),
        distance(columns) {}
  LaneArrays view() {
    return {column_of_row.data(), row_of_column.data(), v.data(), predecessor.data()};
  }
  std::vector<int> column_of_row, row_of_column, predecessor;
  std::vector<double> v, distance;
};

enum class Keep { kInMemory, kInRegisters };

template <class Cost, class Lanes, class Slots>
LapStatus solve_in(const Slots& slots, const CostMatrix<Cost>& cost, Arrays& arrays, Lanes& lanes) {
  LaneColumns<Cost, Lanes, Slots> columns(cost, arrays.view(), slots, lanes);
  return solve(columns);
}

template <class Cost, class Lanes>
LapStatus solve_on(const CostMatrix<Cost>& cost, Keep keep, Arrays& arrays, Lanes& lanes) {
  const LaneArrays view = arrays.view();
  if (keep == Keep::kInMemory) {
    return solve_in(MemorySlots(view, arrays.distance.data()), cost, arrays, lanes);
  }
  const int needed = (cost.columns + lanes.count() - 1) / lanes.count();
  if (needed <= 1) return solve_in(RegisterSlots<1>(view), cost, arrays, lanes);
  if (needed <= 3) return solve_in(RegisterSlots<3>(view), cost, arrays, lanes);
  if (needed <= 32) return solve_in(RegisterSlots<32>(view), cost, arrays, lanes);
  std::abort();
}

template <class Lanes>
LapStatus solve_on(const Problem& p, Keep keep, Arrays& arrays, Lanes& lanes) {
  return p.entry_bytes == 4 ? solve_on(oriented(p, p.floats), keep, arrays, lanes)
                            : solve_on(oriented(p, p.doubles), keep, arrays, lanes);
}

std::vector<Answer> solve_all(const std::vector<Problem>& problems, Keep keep, int count) {
  std::vector<Arrays> arrays;
  for (const Problem& p : problems) {
    arrays.emplace_back(std::min(p.rows, p.columns), std::max(p.rows, p.columns));
  }
  std::vector<Answer> answers(problems.size());
  Team team(count);
  const auto run = [&](int lane) {
    ThreadLanes lanes(team, lane);
    for (size_t k = 0; k < problems.size(); ++k) {
      const LapStatus status = solve_on(problems[k], keep, arrays[k], lanes);
      if (lane == 0) answers[k].status = status;
    }
  };
  std::vector<std::thread> threads;
  for (int lane = 0; lane < count; ++lane) threads.emplace_back(run, lane);
  for (std::thread& thread : threads) thread.join();
  for (size_t k = 0; k < problems.size(); ++k) {
    answers[k].column_of_row = arrays[k].column_of_row;
  }
  return answers;
}

std::vector<Answer> solve_all_with_one_lane(const std::vector<Problem>& problems) {
  std::vector<Answer> answers;
  for (const Problem& p : problems) {
    Arrays arrays(std::min(p.rows, p.columns), std::max(p.rows, p.columns));
    OneLane lane;
    const LapStatus status = solve_on(p, Keep::kInMemory, arrays, lane);
    answers.push_back({status, arrays.column_of_row});
  }
  return answers;
}

#ifdef WITH_CPU_KERNELS
template <class Cost>
LapStatus solve_in_order(LapStatus (*assign)(const CostMatrix<Cost>&, int64_t*, Workspace&),
                         const std::vector<Cost>& costs, const Problem& p, bool columns_first,
                         std::vector<int64_t>& columns_of_rows, Workspace& workspace) {
  if (!columns_first) {
    return assign({costs.data(), p.columns, 1, p.rows, p.columns}, columns_of_rows.data(),
                  workspace);
  }
  std::vector<Cost> turned(costs.size());
  for (int i = 0; i < p.rows; ++i) {
    for (int j = 0; j < p.columns; ++j) turned[j * p.rows + i] = costs[i * p.columns + j];
  }
  return assign({turned.data(), 1, p.rows, p.rows, p.columns}, columns_of_rows.data(), workspace);
}

std::vector<Answer> solve_all_with(const CpuKernels& kernels, const std::vector<Problem>& problems,
                                   bool columns_first) {
  std::vector<Answer> answers;
  Workspace workspace;
  for (const Problem& p : problems) {
    Answer answer;
    const int rows = std::min(p.rows, p.columns);
    std::vector<int64_t> columns_of_rows(p.rows);
    answer.status = p.entry_bytes == 4
                        ? solve_in_order(kernels.assign_float, p.floats, p, columns_first,
                                         columns_of_rows, workspace)
                        : solve_in_order(kernels.assign_double, p.doubles, p, columns_first,
                                         columns_of_rows, workspace);
    answer.column_of_row.assign(rows, -1);
    for (int i = 0; i < p.rows; ++i) {
      const int j = static_cast<int>(columns_of_rows[i]);
      if (j >= 0 && p.rows <= p.columns) answer.column_of_row[i] = j;
      if (j >= 0 && p.rows > p.columns) answer.column_of_row[j] = i;
    }
    answers.push_back(answer);
  }
  return answers;
}
#endif

bool is_optimal(const Problem& p, const Answer& answer) {
  if (std::isnan(p.optimum)) return answer.status != LapStatus::kOptimal;
  if (answer.status != LapStatus::kOptimal) return false;
  const int rows = std::min(p.rows, p.columns), columns = std::max(p.rows, p.columns);
  std::vector<bool> taken(columns, false);
  long double sum = 0;
  double largest = 0;
  for (int i = 0; i < rows; ++i) {
    const int j = answer.column_of_row[i];
    if (j < 0 || j >= columns || taken[j]) return false;
    taken[j] = true;
    const double c = p.entry_bytes == 4 ? oriented(p, p.floats).at(i, j)
                                        : oriented(p, p.doubles).at(i, j);
    sum += c;
    largest = std::max(largest, std::fabs(c));
  }
  return std::fabs(static_cast<double>(sum - p.optimum)) <= 1e-12 * largest;
}

int check(const std::string& name, const std::vector<Problem>& problems,
          const std::vector<Answer>& answers, const std::vector<Answer>& first) {
  int wrong = 0;
  for (size_t k = 0; k < problems.size(); ++k) {
    const bool optimal = is_optimal(problems[k], answers[k]);
    const bool same = answers[k] == first[k];
    if (optimal && same) continue;
    ++wrong;
    std::printf("%s: problem %zu (%dx%d): %s\n", name.c_str(), k, problems[k].rows,
                problems[k].columns, optimal ? "other indices than one lane" : "not optimal");
  }
  std::printf("%s: %zu problems, %d wrong\n", name.c_str(), problems.size(), wrong);
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<Problem> problems = read_problems(argv[1]);
  const std::vector<Answer> first = solve_all_with_one_lane(problems);
  int wrong = check("one lane", problems, first, first);
  for (int k = 2; k + 1 < argc; k += 2) {
    const std::string slots = argv[k + 1];
    const Keep keep = slots == "memory" ? Keep::kInMemory : Keep::kInRegisters;
    wrong += check(argv[k] + (" lanes, " + slots), problems,
                   solve_all(problems, keep, std::atoi(argv[k])), first);
  }
#ifdef WITH_CPU_KERNELS
  for (const CpuKernels* kernels : available_cpu_kernels()) {
    const std::string name = kernels->capability;
    wrong += check(name, problems, solve_all_with(*kernels, problems, false), first);
    wrong += check(name + ", columns first", problems, solve_all_with(*kernels, problems, true),
                   first);
  }
#endif
  return wrong == 0 ? 0 : 1;
}
