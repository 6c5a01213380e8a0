// Runs the kernels of csrc/cuda on the host (see cuda_on_host/) and compares them with the solver
// on one lane and with the CPU kernels: every index, every bit of a cost, every byte that is
// cleared. The exit status is 0 if all is well.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/assign_kernel.h"
#include "cuda/matching_kernel.h"
#include "cuda/clear_padding_kernel.h"

namespace detr_fast {
__align__(16) char block_memory[cuda_on_host::kMostSharedBytes];
}

namespace {

using namespace detr_fast;

std::mt19937 random_bits(1);

int below(int limit) { return static_cast<int>(random_bits() % static_cast<unsigned>(limit)); }

constexpr double kNone = std::numeric_limits<double>::infinity();

// A large card; one on which costs stay in global memory; one on which the state does too.
const Card kCards[] = {{132, 227 << 10, 228 << 10}, {1, 40 << 10, 42 << 10}, {1, 1 << 10, 2 << 10}};

template <class Cost, class Team>
void run_with(const AssignmentBatch<Cost>& batch, const AssignmentPlan& plan, char* workspace) {
  cuda_on_host::launch(static_cast<unsigned>(batch.count), Team::kThreads,
                       [&] { assign<Cost, Team>(batch, plan, workspace); }, random_bits);
}

template <class Cost>
void run_assign(const AssignmentBatch<Cost>& batch, const AssignmentPlan& plan) {
  std::vector<double> workspace(batch.count * plan.workspace / sizeof(double) + 1, NAN);
  char* memory = reinterpret_cast<char*>(workspace.data());
  switch (plan.slots) {
    case kSlots[0]: return run_with<Cost, WarpTeam<kSlots[0]>>(batch, plan, memory);
    case kSlots[1]: return run_with<Cost, WarpTeam<kSlots[1]>>(batch, plan, memory);
    case kSlots[2]: return run_with<Cost, WarpTeam<kSlots[2]>>(batch, plan, memory);
    case kSlots[3]: return run_with<Cost, WarpTeam<kSlots[3]>>(batch, plan, memory);
    default: return run_with<Cost, BlockTeam>(batch, plan, memory);
  }
}

// The truth: the columns of the rows, by one lane.
template <class Cost>
LapStatus solve_on_one_lane(const CostMatrix<Cost>& cost, std::vector<int64_t>& columns_of_rows) {
  std::fill(columns_of_rows.begin(), columns_of_rows.end(), -1);
  const bool turned = cost.rows > cost.columns;
  CostMatrix<Cost> matrix = cost;
  if (turned) {
    matrix = {cost.data, cost.column_stride, cost.row_stride, cost.columns, cost.rows};
  }
  std::vector<int> column_of_row(matrix.rows), row_of_column(matrix.columns);
  std::vector<int> predecessor(matrix.columns);
  std::vector<double> v(matrix.columns), distance(matrix.columns);
  const LaneArrays arrays{column_of_row.data(), row_of_column.data(), v.data(), predecessor.data()};
  OneLane lane;
  LaneColumns<Cost, OneLane, MemorySlots> columns(matrix, arrays, {arrays, distance.data()}, lane);
  const LapStatus status = solve(columns);
  if (status != LapStatus::kOptimal) return status;
  for (int row = 0; row < matrix.rows; ++row) {
    const int column = column_of_row[row];
    columns_of_rows[turned ? column : row] = turned ? row : column;
  }
  return status;
}

int wrong = 0;

void expect(bool right, const char* what, int64_t number) {
  if (right) return;
  ++wrong;
  std::printf("wrong: %s %lld\n", what, static_cast<long long>(number));
}

template <class Cost>
Cost draw(int kind) {
  switch (kind) {
    case 0: return static_cast<Cost>(below(1 << 20)) / (1 << 20);
    case 1: return static_cast<Cost>(below(5) - 2);
    case 2: return below(3) ? static_cast<Cost>(below(9)) : static_cast<Cost>(kNone);
    case 3: return below(2) ? Cost(0) : -Cost(0);
    default: return below(400) ? static_cast<Cost>(below(7)) : static_cast<Cost>(NAN);
  }
}

// A tensor of problems, with sizes of their own or without, in any orientation.
template <class Cost>
void check_tensor(int count, int rows, int columns, bool with_sizes, bool transposed,
                  const Card& card) {
  std::vector<Cost> costs(static_cast<size_t>(count) * rows * columns);
  const int kind = below(5);
  for (Cost& cost : costs) cost = draw<Cost>(kind);
  std::vector<int64_t> sizes;
  for (int b = 0; with_sizes && b < count; ++b) {
    sizes.push_back(below(rows + 1));
    sizes.push_back(below(columns + 1));
  }
  const CostTensor<Cost> tensor{costs.data(), static_cast<long long>(rows) * columns,
                                transposed ? 1 : columns, transposed ? rows : 1};
  const size_t bytes = sizeof(Cost) * rows * columns;
  const AssignmentExtent extent{count, std::min(rows, columns), std::max(rows, columns), bytes,
                                with_sizes ? 0 : bytes};
  const AssignmentPlan plan = plan_assignment(extent, sizeof(Cost), card);

  // What the host does where costs stay in global memory.
  std::vector<Cost> other(costs.size());
  CostTensor<Cost> wide = tensor, tall = tensor;
  if (!copies_all(plan, extent)) {
    const CostTensor<Cost> turned_round{other.data(), tensor.problem_stride,
                                        transposed ? columns : 1, transposed ? 1 : rows};
    for (int b = 0; b < count; ++b) {
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < columns; ++j) {
          other[b * tensor.problem_stride + i * turned_round.row_stride +
                j * turned_round.column_stride] =
              costs[b * tensor.problem_stride + i * tensor.row_stride + j * tensor.column_stride];
        }
      }
    }
    (transposed ? wide : tall) = turned_round;
  }
  std::vector<int64_t> answer(static_cast<size_t>(count) * rows, 77);
  AssignmentBatch<Cost> batch{};
  batch.count = count;
  batch.wide = wide;
  batch.tall = tall;
  batch.rows = rows;
  batch.columns = columns;
  batch.sizes = with_sizes ? sizes.data() : nullptr;
  batch.answer = answer.data();
  run_assign(batch, plan);

  for (int b = 0; b < count; ++b) {
    const int n = with_sizes ? static_cast<int>(sizes[2 * b]) : rows;
    const int m = with_sizes ? static_cast<int>(sizes[2 * b + 1]) : columns;
    std::vector<int64_t> expected(rows);
    solve_on_one_lane<Cost>({costs.data() + b * tensor.problem_stride, tensor.row_stride,
                             tensor.column_stride, n, m},
                            expected);
    expect(std::equal(expected.begin(), expected.end(), answer.begin() + int64_t{b} * rows),
           "assignment of a problem", b);
  }
}

template <class T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr NumberType kType = NumberType::kFloat;
};
template <>
struct TypeOf<double> {
  static constexpr NumberType kType = NumberType::kDouble;
};
template <>
struct TypeOf<_Float16> {
  static constexpr NumberType kType = NumberType::kHalf;
};

template <class T>
std::vector<T> numbers(size_t count, double low, double high) {
  std::uniform_real_distribution<double> distribution(low, high);
  std::vector<T> drawn(count);
  for (T& number : drawn) number = static_cast<T>(distribution(random_bits));
  return drawn;
}

template <class To, class From>
std::vector<To> converted(const std::vector<From>& from) {
  return std::vector<To>(from.begin(), from.end());
}

LapStatus assign_on_cpu(const CostMatrix<float>& cost, int64_t* answer, Workspace& workspace) {
  return cpu_kernels().assign_float(cost, answer, workspace);
}
LapStatus assign_on_cpu(const CostMatrix<double>& cost, int64_t* answer, Workspace& workspace) {
  return cpu_kernels().assign_double(cost, answer, workspace);
}

void costs_on_cpu(const ImageMatching<float>& image, const MatchingOptions& options, float* cost,
                  void* storage) {
  cpu_kernels().matching_cost_float(image, options, cost, storage);
}
void costs_on_cpu(const ImageMatching<double>& image, const MatchingOptions& options, double* cost,
                  void* storage) {
  cpu_kernels().matching_cost_double(image, options, cost, storage);
}

// The CPU's answer for a problem, with its second try where forbidden pairs are in the way.
template <class T>
void match_on_cpu(std::vector<T> cost, int count, int queries, int64_t* matched) {
  Workspace workspace;
  const CostMatrix<T> matrix{cost.data(), queries, 1, count, queries};
  if (assign_on_cpu(matrix, matched, workspace) != LapStatus::kInfeasible) return;
  double largest = 0;
  for (T entry : cost) {
    if (std::isfinite(entry)) largest = std::max(largest, std::abs(static_cast<double>(entry)));
  }
  const T stand_in = static_cast<T>(last_resort(largest, std::min(count, queries)));
  for (T& entry : cost) entry = std::isfinite(entry) ? entry : stand_in;
  assign_on_cpu(matrix, matched, workspace);
  for (int t = 0; t < count; ++t) {
    if (matched[t] >= 0 && cost[t * queries + matched[t]] == stand_in) matched[t] = -1;
  }
}

struct Case {
  int sets, groups, queries, classes;
  std::vector<int> rooms, counts;
  bool focal, with_extra, device_counts;
  double eps, non_finite_cost, share_of_bad;
};

template <class T, class Logit>
void check_matching(const Case& c, const Card& card) {
  const int images = static_cast<int>(c.rooms.size());
  int targets = 0;
  ImageTargets of_images{};
  std::vector<int64_t> device_counts(c.counts.begin(), c.counts.end());
  for (int b = 0; b < images; ++b) {
    of_images.first[b] = targets;
    if (!c.device_counts) of_images.count[b] = c.counts[b];
    targets += c.rooms[b];
  }
  of_images.first[images] = targets;
  const size_t slots = static_cast<size_t>(c.sets) * images * c.queries;
  auto logits = numbers<Logit>(slots * c.classes, -6, 6);
  auto boxes = numbers<float>(slots * 4, 0, 1);
  const auto target_boxes = numbers<float>(static_cast<size_t>(targets) * 4, 0, 1);
  const auto extra = numbers<float>(static_cast<size_t>(c.sets) * targets * c.queries, 0, 1);
  for (float& box : boxes) {
    if (below(1000) < 1000 * c.share_of_bad) box = NAN;
  }
  std::vector<int64_t> labels(targets);
  for (int64_t& label : labels) label = below(c.classes);

  std::vector<T> cost(static_cast<size_t>(c.sets) * targets * c.queries, T(NAN));
  const std::vector<int64_t> unwritten(static_cast<size_t>(c.sets) * c.groups * targets, 77);
  std::vector<int64_t> answer = unwritten;
  const long long q = c.queries, k = c.classes;
  MatchingBatch<T> batch{};
  batch.sets = c.sets;
  batch.queries = c.queries;
  batch.classes = c.classes;
  batch.groups = 1;
  batch.images = images;
  batch.targets = targets;
  batch.logits = {logits.data(), TypeOf<Logit>::kType, {images * q * k, q * k, k, 1}};
  batch.boxes = {boxes.data(), NumberType::kFloat, {images * q * 4, q * 4, 4, 1}};
  batch.labels = labels.data();
  batch.label_stride = 1;
  batch.target_boxes = {target_boxes.data(), NumberType::kFloat, {4, 1}};
  if (c.with_extra) batch.extra = {extra.data(), NumberType::kFloat, {targets * q, q, 1}};
  if (c.device_counts) batch.counts = device_counts.data();
  batch.focal = c.focal;
  batch.focal_parameters = {0.25, 2.0, c.eps};
  batch.weights = {1, 5, 2};
  batch.cost = cost.data();

  const auto run = [&] {
    const int tiles = (c.queries + kTile - 1) / kTile;
    cuda_on_host::launch(tiles * c.sets * images, kMatchingThreads,
                         [&] { matching_costs<T, Logit>(batch, of_images, tiles); }, random_bits);
  };
  const auto dense_logits = converted<T>(logits), dense_boxes = converted<T>(boxes);
  const auto dense_targets = converted<T>(target_boxes), dense_extra = converted<T>(extra);
  MatchingOptions options{c.focal, batch.focal_parameters, batch.weights, std::nullopt};
  const auto on_cpu = [&](int set, int group, int b) {
    const int in_group = c.queries / batch.groups;
    const size_t slot = (static_cast<size_t>(set) * images + b) * c.queries + group * in_group;
    const size_t row = static_cast<size_t>(set) * targets + of_images.first[b];
    const ImageMatching<T> image{
        dense_logits.data() + slot * c.classes,
        dense_boxes.data() + slot * 4,
        labels.data() + of_images.first[b],
        dense_targets.data() + of_images.first[b] * 4,
        c.with_extra ? dense_extra.data() + row * c.queries + group * in_group : nullptr,
        c.queries,
        in_group,
        c.classes,
        c.counts[b]};
    std::vector<T> costs(static_cast<size_t>(c.counts[b]) * in_group);
    std::vector<double> storage(cpu_kernels().matching_cost_bytes(in_group, sizeof(T)) / 8 + 1);
    if (c.counts[b] > 0) costs_on_cpu(image, options, costs.data(), storage.data());
    return costs;
  };

  run();
  for (int set = 0; set < c.sets; ++set) {
    for (int b = 0; b < images; ++b) {
      std::vector<T> expected = on_cpu(set, 0, b);
      expected.resize(static_cast<size_t>(c.rooms[b]) * c.queries, 0);
      const T* found =
          cost.data() + (static_cast<size_t>(set) * targets + of_images.first[b]) * c.queries;
      bool same = true;
      for (size_t i = 0; i < expected.size(); ++i) {
        same &= std::isnan(expected[i]) ? std::isnan(found[i])
                                        : !std::memcmp(&expected[i], &found[i], sizeof(T));
      }
      expect(same, "costs of image", b);
    }
  }

  batch.groups = c.groups;
  batch.range = c.non_finite_cost == kNone
                    ? CostRange{kLargestAllowed, kNone}
                    : CostRange{std::numeric_limits<T>::max(), c.non_finite_cost};
  options.range = batch.range;
  std::vector<AssignmentProblem<T>> problems(static_cast<size_t>(c.sets) * c.groups * images);
  batch.problems = problems.data();
  batch.answer = answer.data();
  run();
  const int in_group = c.queries / c.groups;
  const std::vector<int>& limits = c.device_counts ? c.rooms : c.counts;
  const int most = *std::max_element(limits.begin(), limits.end());
  const int fewest = c.device_counts ? 0 : *std::min_element(limits.begin(), limits.end());
  const AssignmentExtent extent{static_cast<int64_t>(problems.size()), std::min(most, in_group),
                                std::max(most, in_group), sizeof(T) * most * in_group,
                                sizeof(T) * fewest * in_group};
  AssignmentBatch<T> assignment{};
  assignment.count = static_cast<int64_t>(problems.size());
  assignment.problems = problems.data();
  assignment.yields = c.non_finite_cost == kNone;
  run_assign(assignment, plan_assignment(extent, sizeof(T), card));

  for (int set = 0; set < c.sets; ++set) {
    for (int group = 0; group < c.groups; ++group) {
      for (int b = 0; b < images; ++b) {
        std::vector<int64_t> expected(c.rooms[b], -1);
        match_on_cpu(on_cpu(set, group, b), c.counts[b], in_group, expected.data());
        for (int64_t& query : expected) query += query < 0 ? 0 : group * in_group;
        const int64_t* found = answer.data() +
                               static_cast<size_t>(set * c.groups + group) * targets +
                               of_images.first[b];
        expect(std::equal(expected.begin(), expected.end(), found), "matches of image", b);
      }
    }
  }
}

// All bytes around the maps, too, must be as they were.
void check_clearing(int channels, int height, int width, int entry, bool last, int skipped,
                    unsigned workers) {
  const std::vector<int64_t> extents{height, width, height / 2, width,     height, width / 2, 0, 5,
                                     1,      1,     height + 9, width + 9, -3,     4};
  const auto images = static_cast<unsigned>(extents.size() / 2);
  const int64_t image_bytes = int64_t{entry} * channels * height * width;
  // An address like that of a tensor that begins within another.
  constexpr int kAround = 64;
  std::vector<uint4> memory((images * image_bytes + 2 * kAround) / sizeof(uint4) + 1);
  char* bytes = reinterpret_cast<char*>(memory.data());
  std::memset(bytes, 0x5a, memory.size() * sizeof(uint4));
  std::vector<char> expected(bytes, bytes + memory.size() * sizeof(uint4));
  const int64_t start = kAround + skipped * entry;
  for (unsigned b = 0; b < images; ++b) {
    for (int64_t k = 0; k < image_bytes; ++k) {
      const int64_t number = k / entry;
      const int64_t pixel = last ? number / channels : number % (height * width);
      const bool inside = pixel / width < extents[2 * b] && pixel % width < extents[2 * b + 1];
      if (!inside) expected[start + b * image_bytes + k] = 0;
    }
  }
  const PaddedGrid grid{bytes + start, extents.data(), images,
                        static_cast<unsigned>(last ? 1 : channels), height, width,
                        last ? channels * entry : entry};
  cuda_on_host::launch(images * workers, kClearingThreads, [&] { clear_padding(grid, workers); },
                       random_bits);
  expect(std::equal(expected.begin(), expected.end(), bytes), "cleared bytes at entry size", entry);
}

void check_clearings() {
  for (int entry : {2, 4, 8}) {
    for (bool last : {false, true}) {
      for (int skipped : {0, 1, 3}) check_clearing(5, 9, 13, entry, last, skipped, 2);
    }
  }
  // Runs of more than a piece, to the right and below.
  check_clearing(300, 3, 40, 2, true, 1, 3);
  check_clearing(1, 70, 90, 2, false, 0, 1);
}

void check_assignments() {
  for (int k = 0; k < 60; ++k) {
    const Card& card = kCards[k % 3];
    check_tensor<float>(2, 1 + below(40), 1 + below(40), k % 2, below(2), card);
    check_tensor<double>(2, 1 + below(24), 1 + below(130), k % 2, below(2), card);
  }
  for (const Card& card : kCards) {
    check_tensor<float>(1, 30, 300, false, true, card);
    check_tensor<float>(1, 640, 12, false, false, card);
    check_tensor<float>(1, 20, 1024, false, false, card);
    check_tensor<float>(2, 12, 1100, true, false, card);
    check_tensor<double>(1, 1300, 9, false, true, card);
    check_tensor<float>(3, 5, 7, true, false, card);
  }
}

void check_matchings() {
  const std::vector<int> rooms{5, 0, 40, 1}, fewer{3, 0, 33, 1};
  for (const Card& card : kCards) {
    for (bool focal : {false, true}) {
      check_matching<float, float>(
          {2, 1, 37, 20, rooms, rooms, focal, false, false, 1e-8, 1e8, 0}, card);
      check_matching<float, _Float16>(
          {1, 2, 70, 91, rooms, fewer, focal, true, true, 0, 1e8, 0.01}, card);
      check_matching<float, float>(
          {1, 3, 36, 3, rooms, fewer, focal, false, false, 1e-12, kNone, 0.2}, card);
      check_matching<float, float>({1, 1, 36, 3, rooms, fewer, focal, true, true, 0, NAN, 0.01},
                                   card);
      check_matching<double, double>(
          {1, 1, 36, 17, rooms, fewer, focal, true, true, 0, kNone, 0.05}, card);
    }
    check_matching<float, float>({1, 1, 8, 4, {1500}, {1100}, true, false, true, 0, 1e8, 0}, card);
  }
}

}  // namespace

int main() {
  check_assignments();
  check_matchings();
  check_clearings();
  std::printf("%d wrong\n", wrong);
  return wrong == 0 ? 0 : 1;
}
