// What becomes of the tables of reductions on the device: exact sums of their columns, the factors that follow from
// norms, and the weights that follow from the products of two vectors. Contracts: kernels/_sums.py, kernels/answers.py.
#include <algorithm>

#include "arc.h"
#include "device.h"
#include "exact_sum.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 128, kWarps = kThreads / kWarp;
// Numbers of a thread whose loads are in flight together.
constexpr int kBatch = 4;
constexpr std::size_t kShared = sizeof(std::int64_t) * kSumDigits * kThreads;

// As kernel parameters; `first` is the number of its first column among those of all tables.
struct Entry {
  const double* table;
  std::int64_t rows;
  unsigned columns, first;
};
constexpr int kEntries = 1024;
struct Entries {
  Entry entries[kEntries];
  int count;
};

__device__ inline const Entry& entry_of(const Entries& p, unsigned column) {
  int low = 0, high = p.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (p.entries[middle].first <= column) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return p.entries[low];
}

// A block per column. Every thread has digits of its own in shared memory, since the numbers of a column have few
// exponents: atomic additions would meet in the same digits.
__global__ void __launch_bounds__(kThreads) exact_sum_kernel(const __grid_constant__ Entries p, double* sums) {
  __shared__ std::int64_t totals[kSumDigits];
  __shared__ double specials[kThreads];
  std::int64_t* const all = dynamic_shared<std::int64_t>();
  const unsigned thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const Entry& entry = entry_of(p, blockIdx.x);
  const double* const column = entry.table + (blockIdx.x - entry.first);
  for (int i = 0; i < kSumDigits; ++i) all[i * kThreads + thread] = 0;
  double special = 0;
  for (std::int64_t row = thread; row < entry.rows; row += kThreads * kBatch) {
    double values[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::int64_t at = row + i * kThreads;
      values[i] = at < entry.rows ? column[at * entry.columns] : 0.0;
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (is_special(values[i])) {
        special += values[i];
      } else {
        add_digits(values[i], [&](int digit, std::int64_t value) { all[digit * kThreads + thread] += value; });
      }
    }
  }
  specials[thread] = special;
  __syncthreads();
  for (unsigned digit = warp; digit < kSumDigits; digit += kWarps) {
    std::int64_t sum = 0;
#pragma unroll
    for (unsigned i = 0; i < kThreads; i += kWarp) sum += all[digit * kThreads + i + lane];
#pragma unroll
    for (int threads = kWarp / 2; threads > 0; threads /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, threads);
    if (lane == 0) totals[digit] = sum;
  }
  __syncthreads();
  if (thread != 0) return;
  for (unsigned i = 1; i < kThreads; ++i) special += specials[i];
  sums[blockIdx.x] = special != 0 ? special : round_digits<std::int64_t*>(totals);
}

// As kernel parameters: the models of many tensors, whose norms and weights lie one after another.
struct Rule {
  double least;
  unsigned first, count;
};
constexpr int kRules = 512, kWeights = 2048;
struct Rules {
  Rule rules[kRules];
  double weights[kWeights];
  int count;
  unsigned inputs;
};
static_assert(sizeof(Rules) <= 32764, "the rules are too many for the parameters of a kernel");

// A block per tensor. Writes a factor per model, and after them 0, or 1 where not all follow from the norms.
__global__ void __launch_bounds__(kMaxTensors)
    matched_factors_kernel(const __grid_constant__ Rules p, const double* sums, float* factors) {
  __shared__ int failed[kMaxTensors];
  const Rule& rule = p.rules[blockIdx.x];
  const unsigned k = threadIdx.x, model = rule.first + k;
  float* const found = factors + rule.first + blockIdx.x;
  if (k < rule.count) {
    const double total = sums[2 * model], kept = sums[2 * model + 1], weight = p.weights[model];
    const double factor = (total < kept ? total : kept) < rule.least ? weight : weight * (total / kept);
    const auto rounded = static_cast<float>(factor);
    found[k] = rounded;
    failed[k] = !is_finite(total) || !is_finite(rounded);
  }
  __syncthreads();
  if (k != 0) return;
  bool any = false;
  for (unsigned i = 0; i < rule.count; ++i) any |= failed[i] != 0;
  found[rule.count] = any ? 1.0f : 0.0f;
}

constexpr int kArcThreads = 32, kPlaces = 2048;
struct Places {
  double values[kPlaces];
  int count;
};

// A thread per tensor. Writes two weights, then 0, or 1 where they are not certain.
__global__ void __launch_bounds__(kArcThreads)
    arc_weights_kernel(const __grid_constant__ Places p, const double* sums, float* weights) {
  const int i = static_cast<int>(blockIdx.x) * kArcThreads + static_cast<int>(threadIdx.x);
  if (i >= p.count) return;
  weights[3 * i + 2] = weights_of_arc(weights + 3 * i, sums + 3 * i, p.values[i]) ? 0.0f : 1.0f;
}

}  // namespace

void exact_sums(double* sums, const std::vector<SumTable>& tables, const Stream& stream) {
  Entries p{};
  unsigned columns = 0;
  const auto flush = [&] {
    if (columns) {
      const std::string what = "exact sums of " + std::to_string(p.count) + " tables";
      launch(what, stream, exact_sum_kernel, {columns, kThreads, kShared}, p, sums);
    }
    sums += columns;
    columns = 0;
    p.count = 0;
  };
  for (const SumTable& table : tables) {
    if (table.columns == 0) continue;
    if (p.count == kEntries) flush();
    p.entries[p.count++] = {table.data, table.rows, table.columns, columns};
    columns += table.columns;
  }
  flush();
}

void matched_factors(float* factors, const double* sums, const std::vector<FactorRule>& rules, const Stream& stream) {
  Rules p{};
  const auto flush = [&] {
    if (p.count == 0) return;
    launch("factors of " + std::to_string(p.count) + " tensors", stream, matched_factors_kernel,
           {static_cast<unsigned>(p.count), kMaxTensors}, p, sums, factors);
    sums += 2 * p.inputs;
    factors += p.inputs + p.count;
    p.count = 0;
    p.inputs = 0;
  };
  for (const FactorRule& rule : rules) {
    const auto count = static_cast<unsigned>(rule.weights.size());
    if (p.count == kRules || p.inputs + count > kWeights) flush();
    p.rules[p.count++] = {rule.least, p.inputs, count};
    for (const double weight : rule.weights) p.weights[p.inputs++] = weight;
  }
  flush();
}

void arc_weights(float* weights, const double* sums, const std::vector<double>& places, const Stream& stream) {
  Places p{};
  for (std::size_t first = 0; first < places.size(); first += kPlaces) {
    p.count = static_cast<int>(std::min<std::size_t>(kPlaces, places.size() - first));
    std::copy_n(places.begin() + static_cast<std::ptrdiff_t>(first), p.count, p.values);
    launch("weights of " + std::to_string(p.count) + " arcs", stream, arc_weights_kernel,
           {blocks_of(p.count, kArcThreads), kArcThreads}, p, sums + 3 * first, weights + 3 * first);
  }
}

}  // namespace fastmerge::cuda
