// Selection by one block: of small tensors, and of the ends of a bracket in a sample. See select.cu.
#include "select.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kValues = kSample / kThreads;
constexpr int kInfinity = 0x7F800000;

// Digits of a magnitude, from the highest: of its 31 bits the first has one more.
constexpr int kDigit = 10, kBits = 31;
constexpr unsigned kBins = 1u << (kDigit + 1);

// A value, the rank (from 1) of the one that is looked for among those that equal it, and their number.
struct Place {
  int value;
  unsigned rank, equal;
};

// The value of that rank (1 is the largest) among those of all threads, digit by digit; -1 stands for a missing value.
__device__ Place value_of_rank(const int (&values)[kValues], unsigned rank, unsigned* bins) {
  Place found{0, rank, 0};
  int above = kBits;
  for (int shift = 2 * kDigit; shift >= 0; shift -= kDigit) {
    for (unsigned i = threadIdx.x; i < kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    const unsigned mask = (1u << (above - shift)) - 1;
    // Equal neighbours are added together, since a few values may be nearly all.
    unsigned last = 0, run = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      if (values[i] < 0 || (above < kBits && values[i] >> above != found.value)) continue;
      const unsigned digit = static_cast<unsigned>(values[i]) >> shift & mask;
      if (digit != last) {
        if (run) atomicAdd(&bins[last], run);
        last = digit;
        run = 0;
      }
      ++run;
    }
    if (run) atomicAdd(&bins[last], run);
    __syncthreads();
    const Nth nth = find_nth(mask + 1, found.rank, [&](std::uint64_t i) { return bins[mask - i]; });
    const unsigned digit = mask - static_cast<unsigned>(nth.index);
    found = {found.value << (above - shift) | static_cast<int>(digit), static_cast<unsigned>(nth.left), bins[digit]};
    above = shift;
    __syncthreads();
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
  __shared__ unsigned bins[kBins];
  const Item& item = p.items[blockIdx.x / 2];
  const bool upper = blockIdx.x % 2 == 0, small = item.state == nullptr;
  const int rank = upper ? item.sample_high : item.sample_low;
  if (small && !upper) return;
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
  const auto [value, inside, equal] = value_of_rank(values, small ? static_cast<unsigned>(item.rank) : rank, bins);
  if (!small) {
    // The pass compares numbers: a NaN is always above.
    if (threadIdx.x == 0) (upper ? item.state->high : item.state->low) = value < kInfinity ? value : kInfinity;
    return;
  }
  std::int64_t break_index = kAllEqual;
  if (inside < equal) {
    const int wanted = value;
    const auto equals = [&](std::uint64_t i) { return magnitude_at(item, i) == wanted; };
    break_index = static_cast<std::int64_t>(find_nth(item.size, inside, equals).index) + 1;
  }
  if (threadIdx.x == 0) *item.found = {value, break_index, kFound};
}

}  // namespace

void launch_search(const Items& table, const std::string& what, const Stream& stream) {
  launch(what, stream, search_kernel, {static_cast<unsigned>(2 * table.count), kThreads}, table);
}

}  // namespace fastmerge::cuda
