// Selection by one block: of small tensors, and of the ends of a bracket in a sample. See select.cu.
#include "select.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kValues = kSample / kThreads;
constexpr int kInfinity = 0x7F800000;

// The sum over the block. Each call needs a counter of its own that is zero.
__device__ unsigned block_sum(unsigned mine, unsigned* counter) {
  const unsigned sum = __reduce_add_sync(kAllLanes, mine);
  if (threadIdx.x % 32 == 0) atomicAdd(counter, sum);
  __syncthreads();
  return *counter;
}

// The value of that rank (1 is the largest) among those of all threads, bit by bit; -1 stands for a missing value.
__device__ int value_of_rank(const int (&values)[kValues], unsigned rank, unsigned* counters) {
  int found = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const int candidate = found | 1 << bit;
    unsigned reached = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) reached += values[i] >= candidate;
    if (block_sum(reached, counters + bit) >= rank) found = candidate;
  }
  return found;
}

// Places on a jittered grid of runs, so that no period of the data can fool the sample.
__device__ std::uint64_t sample_place(unsigned i, std::uint64_t size) {
  const unsigned run = i / kSampleRun;
  const std::uint64_t stride = size / (kSample / kSampleRun);
  unsigned random = run * 0x9E3779B9u;
  random = (random ^ random >> 16) * 0x85EBCA6Bu;
  random = (random ^ random >> 13) * 0xC2B2AE35u;
  random ^= random >> 16;
  return run * stride + (random * (stride - kSampleRun + 1) >> 32) + i % kSampleRun;
}

// Two blocks per item: one for each end of the bracket.
__global__ void __launch_bounds__(kThreads, 2) search_kernel(const __grid_constant__ Items p) {
  __shared__ unsigned counters[33];
  const Item& item = p.items[blockIdx.x / 2];
  const bool upper = blockIdx.x % 2 == 0, small = item.state == nullptr;
  const int rank = upper ? item.sample_high : item.sample_low;
  if (small && !upper) return;
  if (threadIdx.x < 33) counters[threadIdx.x] = 0;
  __syncthreads();
  if (!small && (rank < 1 || rank > kSample)) {
    if (threadIdx.x == 0) (upper ? item.state->high : item.state->low) = upper ? kInfinity : 0;
    return;
  }
  int values[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const unsigned at = i * kThreads + threadIdx.x;
    const std::uint64_t place = small ? at : sample_place(at, item.size);
    values[i] = place < item.size ? magnitude_at(item, place) : -1;
  }
  const int value = value_of_rank(values, small ? static_cast<unsigned>(item.rank) : rank, counters);
  if (!small) {
    // The pass compares numbers: a NaN is always above.
    if (threadIdx.x == 0) (upper ? item.state->high : item.state->low) = value < kInfinity ? value : kInfinity;
    return;
  }
  unsigned above = 0, equal = 0;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    above += values[i] > value;
    equal += values[i] == value;
  }
  const unsigned inside = static_cast<unsigned>(item.rank) - block_sum(above, counters + 31);
  std::int64_t break_index = kAllEqual;
  if (inside < block_sum(equal, counters + 32)) {
    const auto equals = [&](std::uint64_t i) { return magnitude_at(item, i) == value; };
    break_index = static_cast<std::int64_t>(find_nth(item.size, inside, equals).index) + 1;
  }
  if (threadIdx.x == 0) *item.found = {value, break_index, kFound};
}

}  // namespace

void launch_search(const Items& table, const std::string& what, const Stream& stream) {
  launch(what, stream, search_kernel, {static_cast<unsigned>(2 * table.count), kThreads}, table);
}

}  // namespace fastmerge::cuda
