// Selection on the device: what its kernels share. See select.cu.
#pragma once

#include "vectors.h"

namespace fastmerge::cuda {

constexpr int kSample = 16384;   // elements that are sampled, and the most that one block selects from directly
constexpr int kSampleRun = 8;    // neighbours that are sampled together: 16 bytes of bfloat16
constexpr int kWarpTile = 1024;  // elements that a warp reads together: 32 for each lane
constexpr int kLane = kWarpTile / 32;
constexpr int kPools = 8;  // parts of a buffer, so that warps share a counter with few others
constexpr int kDigitBits = 11;
constexpr int kLevels = 3;     // digits of 11 bits that cover any bracket
constexpr int kMaxSpans = 64;  // groups of chunks that the break index is looked for in
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr std::int64_t kAllEqual = INT64_MAX;

using Count = unsigned long long;  // what 64-bit atomics take

// What one chunk contributed, and where in its pool the values lie that were gathered from it.
struct __align__(16) Record {
  unsigned first, gathered, equal_high, equal_low;
};

// What is known of a boundary that a bracket is used for. All zero at first.
struct State {
  int low, high;                       // the bracket; both ends are values of the sample, or 0 and infinity
  Count above, equal_high, equal_low;  // elements above the bracket, and at its ends
  Count used[kPools];                  // values gathered from between the ends
  unsigned prefix;                     // the digits found so far, of a gathered value less `low`
  Count rank, equal;                   // of the boundary among the values with that prefix, and their number
  unsigned finished[kLevels + 1];      // blocks that are done, per kernel
  unsigned digits[1 << kDigitBits];
  Count spans[kMaxSpans];
};

enum Status : int { kFound = 0, kMissed = 1, kOverflowed = 2 };

// The row of the results that a boundary is written to.
struct Found {
  std::int64_t threshold, break_index, status;
};

// One boundary that is looked for. Where `state` is null a single block finds it.
struct Item {
  Array tensor, base;
  std::uint64_t size, rank;
  int sample_high, sample_low;  // ranks of the ends of the bracket in the sample; 0, and more than kSample, for none
  State* state;
  Record* records;     // one per chunk
  unsigned* gathered;  // kPools times `capacity` float32 bits
  std::uint64_t capacity;
  Found* found;
};

// As kernel parameters.
constexpr int kItems = 32;
struct Items {
  Item items[kItems];
  int count;
};

// Where a boundary lies relative to its bracket, and its rank (from 1) and the number of elements there.
enum Region : int { kInside, kAtHigh, kAtLow, kOutside, kLost };
struct Cut {
  Region region;
  Count rank, equal;
};

__device__ inline Cut cut_of(const Item& item) {
  const State& state = *item.state;
  Count gathered = 0, rank = item.rank;
  bool lost = false;
  for (int pool = 0; pool < kPools; ++pool) {
    gathered += state.used[pool];
    lost |= state.used[pool] > item.capacity;
  }
  if (rank <= state.above) return {kOutside, 0, 0};
  rank -= state.above;
  if (rank <= state.equal_high) return {kAtHigh, rank, state.equal_high};
  rank -= state.equal_high;
  if (rank <= gathered) return {lost ? kLost : kInside, rank, 0};
  rank -= gathered;
  if (rank <= state.equal_low) return {kAtLow, rank, state.equal_low};
  return {kOutside, 0, 0};
}

__device__ inline int magnitude_at(const Item& item, std::uint64_t i) {
  float delta = element_at(item.tensor, i);
  if (item.base.data) delta = delta - element_at(item.base, i);
  return canonical_bits(magnitude_bits(delta));
}

// The smallest index up to which the counts add up to nth (from 1), and what is left of nth at that index.
struct Nth {
  std::uint64_t index;
  Count left;
};

// get(i) returns the count at i < size. Called by all threads of a block, once per type of get.
template <class Get>
__device__ Nth find_nth(std::uint64_t size, Count nth, Get get) {
  __shared__ Count sums[32];
  __shared__ Nth found;
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::uint64_t each = (size + blockDim.x - 1) / blockDim.x;
  const std::uint64_t begin = threadIdx.x * each, end = begin + each < size ? begin + each : size;
  Count mine = 0;
  for (std::uint64_t i = begin; i < end; ++i) mine += get(i);
  Count upto = mine;
  for (int step = 1; step < 32; step *= 2) {
    const Count other = __shfl_up_sync(kAllLanes, upto, step);
    if (lane >= static_cast<unsigned>(step)) upto += other;
  }
  if (lane == 31) sums[warp] = upto;
  __syncthreads();
  for (unsigned w = 0; w < warp; ++w) upto += sums[w];
  Count before = upto - mine;
  if (before < nth && nth <= upto) {
    std::uint64_t i = begin;
    for (Count count = get(i); before + count < nth; count = get(++i)) before += count;
    found = {i, nth - before};
  }
  __syncthreads();
  return found;
}

// True in the last block of an item that calls it: what the others wrote before, volatile reads see there.
__device__ inline bool is_last_block(unsigned* finished, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(finished, 1u) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// Each launches its kernels for the items of a table; `what` names the operation in errors. launch_search takes any
// items, launch_collect those of one job; both others only items that have a state.
void launch_search(const Items& table, const std::string& what, const Stream& stream);
void launch_collect(const Items& table, const std::string& what, const Stream& stream);
void launch_finish(const Items& table, const std::string& what, const Stream& stream);

}  // namespace fastmerge::cuda
