// From what was gathered to the boundaries: the digits of the threshold, then the break index. See select.cu.
#include <algorithm>

#include "select.h"

namespace fastmerge::cuda {
namespace {

constexpr int kRefineThreads = 1024;
constexpr int kLocateThreads = 256;

// Bits below the digit of a level, whose values are at most `span`.
__device__ inline int digit_shift(unsigned span, int level) {
  const int width = 32 - __clz(static_cast<int>(span));
  return width > kDigitBits * (level + 1) ? width - kDigitBits * (level + 1) : 0;
}

// Finds one digit of the threshold. `blocks` blocks per item.
__global__ void __launch_bounds__(kRefineThreads)
    refine_kernel(const __grid_constant__ Items p, unsigned blocks, int level) {
  __shared__ unsigned digits[1 << kDigitBits];
  const Item& item = p.items[blockIdx.x / blocks];
  State& state = *item.state;
  const Cut cut = cut_of(item);
  const unsigned low = static_cast<unsigned>(state.low), span = static_cast<unsigned>(state.high) - low;
  const int shift = digit_shift(span, level), above = level ? digit_shift(span, level - 1) : 31;
  if (cut.region != kInside || above == 0) return;
  const unsigned prefix = level ? state.prefix : 0, mask = level ? (1u << (above - shift)) - 1 : ~0u;
  for (unsigned i = threadIdx.x; i < 1u << kDigitBits; i += kRefineThreads) digits[i] = 0;
  __syncthreads();
  // Equal neighbours are added together, since a few values may be nearly all.
  unsigned last = 0, run = 0;
  for (int pool = 0; pool < kPools; ++pool) {
    const unsigned* const values = item.gathered + pool * item.capacity;
    const Count used = state.used[pool];
    const std::uint64_t stride = std::uint64_t{blocks} * kRefineThreads;
#pragma unroll 4
    for (std::uint64_t i = blockIdx.x % blocks * kRefineThreads + threadIdx.x; i < used; i += stride) {
      const unsigned value = values[i] - low;
      if (value >> above != prefix) continue;
      const unsigned digit = value >> shift & mask;
      if (digit != last) {
        if (run) atomicAdd(&digits[last], run);
        last = digit;
        run = 0;
      }
      ++run;
    }
  }
  if (run) atomicAdd(&digits[last], run);
  __syncthreads();
  for (unsigned i = threadIdx.x; i < 1u << kDigitBits; i += kRefineThreads) {
    if (digits[i]) atomicAdd(&state.digits[i], digits[i]);
  }
  if (!is_last_block(&state.finished[level], blocks)) return;
  // From the largest digit down.
  volatile unsigned* const counts = state.digits;
  constexpr unsigned kLast = (1u << kDigitBits) - 1;
  const auto from_top = [&](std::uint64_t i) { return counts[kLast - i]; };
  const Nth nth = find_nth(kLast + 1, level ? state.rank : cut.rank, from_top);
  const unsigned digit = kLast - static_cast<unsigned>(nth.index);
  const unsigned equal = counts[digit];
  __syncthreads();
  if (threadIdx.x == 0) {
    state.prefix = level ? prefix << (above - shift) | digit : digit;
    state.rank = nth.left;
    state.equal = equal;
  }
  for (unsigned i = threadIdx.x; i <= kLast; i += kRefineThreads) counts[i] = 0;
}

// Writes the results; where a boundary splits its equals, finds the index after the last one inside. `blocks` blocks
// per item, at most kMaxSpans.
__global__ void __launch_bounds__(kLocateThreads) locate_kernel(const __grid_constant__ Items p, unsigned blocks) {
  __shared__ unsigned found;
  const Item& item = p.items[blockIdx.x / blocks];
  State& state = *item.state;
  const unsigned block = blockIdx.x % blocks;
  Cut cut = cut_of(item);
  int threshold = cut.region == kAtLow ? state.low : state.high;
  if (cut.region == kInside) {
    threshold = state.low + static_cast<int>(state.prefix);
    cut = {kInside, state.rank, state.equal};
  }
  if (cut.region == kOutside || cut.region == kLost || cut.rank == cut.equal) {
    const int status = cut.region == kOutside ? kMissed : cut.region == kLost ? kOverflowed : kFound;
    if (block == 0 && threadIdx.x == 0) *item.found = {threshold, kAllEqual, status};
    return;
  }
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  const std::uint64_t chunks = (item.size + kWarpTile - 1) / kWarpTile, each = (chunks + blocks - 1) / blocks;
  const std::uint64_t begin = block * each, end = begin + each < chunks ? begin + each : chunks;
  unsigned mine = 0;
  if (cut.region == kInside) {
    // A warp per chunk counts what was gathered from it; the place of the count at the upper end is free by now.
    for (std::uint64_t chunk = begin + threadIdx.x / 32; chunk < end; chunk += kLocateThreads / 32) {
      Record& record = item.records[chunk];
      const unsigned* const values = item.gathered + chunk % kPools * item.capacity + record.first;
      const unsigned wanted = static_cast<unsigned>(threshold);
      unsigned equal = 0;
      for (unsigned i = threadIdx.x % 32; i < record.gathered; i += 32) equal += values[i] == wanted;
      mine += equal;
      equal = __reduce_add_sync(kAllLanes, equal);
      if (threadIdx.x % 32 == 0) record.equal_high = equal;
    }
  } else {
    for (std::uint64_t chunk = begin + threadIdx.x; chunk < end; chunk += kLocateThreads) {
      const Record& record = item.records[chunk];
      mine += cut.region == kAtLow ? record.equal_low : record.equal_high;
    }
  }
  mine = __reduce_add_sync(kAllLanes, mine);
  if (threadIdx.x % 32 == 0) atomicAdd(&found, mine);
  __syncthreads();
  if (threadIdx.x == 0) state.spans[block] = found;
  if (!is_last_block(&state.finished[kLevels], blocks)) return;
  const volatile Count* const spans = state.spans;
  const volatile Record* const records = item.records;
  const Nth span = find_nth(blocks, cut.rank, [&](std::uint64_t i) { return spans[i]; });
  const std::uint64_t first = span.index * each, left = chunks - first;
  const Nth chunk = find_nth(left < each ? left : each, span.left, [&](std::uint64_t i) {
    return cut.region == kAtLow ? records[first + i].equal_low : records[first + i].equal_high;
  });
  const std::uint64_t start = (first + chunk.index) * kWarpTile, rest = item.size - start;
  const Nth place = find_nth(rest < kWarpTile ? rest : kWarpTile, chunk.left,
                             [&](std::uint64_t i) { return magnitude_at(item, start + i) == threshold; });
  if (threadIdx.x == 0) *item.found = {threshold, static_cast<std::int64_t>(start + place.index) + 1, kFound};
}

// The blocks per item of a table: enough for its largest one, of whose units each block takes so many.
template <class Units>
unsigned blocks_per_item(const Items& table, std::size_t each, Units units) {
  std::size_t most = 1;
  for (int i = 0; i < table.count; ++i) most = std::max<std::size_t>(most, (units(table.items[i]) + each - 1) / each);
  return static_cast<unsigned>(std::min<std::size_t>(most, kMaxSpans));
}

}  // namespace

void launch_finish(const Items& table, const std::string& what, const Stream& stream) {
  const unsigned count = static_cast<unsigned>(table.count);
  const unsigned refining =
      blocks_per_item(table, 4 * kRefineThreads, [](const Item& item) { return item.capacity * kPools; });
  for (int level = 0; level < kLevels; ++level) {
    launch(what, stream, refine_kernel, {count * refining, kRefineThreads}, table, refining, level);
  }
  const unsigned locating =
      blocks_per_item(table, kLocateThreads, [](const Item& item) { return item.size / kWarpTile; });
  launch(what, stream, locate_kernel, {count * locating, kLocateThreads}, table, locating);
}

}  // namespace fastmerge::cuda
