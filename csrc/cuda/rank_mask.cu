// Masks by rank: kernels/rank_mask.py. A block sorts a row by radix, stably, with eight bits at a time; then the drop
// threshold of every element is that of its place.
//
// The row lies in shared memory twice where it fits, else in a workspace. Each warp owns a stretch of the row, so that
// places rise with positions.
#include <algorithm>

#include "vectors.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarp = 32, kDigits = 256, kDigitsPerLane = kDigits / kWarp;
constexpr int kMostWarps = 16;
constexpr int kElementsPerWarp = 128;
constexpr unsigned kAll = 0xFFFFFFFFu;
// A row that fits leaves room for two blocks on a multiprocessor with 164 KB or more.
constexpr std::size_t kMostShared = 80 << 10;
// RankedMethod.scratch_bytes counts on it. One row may take more.
constexpr std::size_t kMostWorkspace = std::size_t{20} << 20;

// Magnitude and position of an element.
using Pair = unsigned long long;

struct Input {
  RankJob job;
  std::int64_t rows;
  Pair* workspace;  // null where rows fit the shared memory
};

__device__ inline float element_of(const Array& array, std::int64_t i) {
  if (array.dtype == kFloat32) return static_cast<const float*>(array.data)[i];
  const unsigned bits = static_cast<const std::uint16_t*>(array.data)[i];
  return array.dtype == kBFloat16 ? widen_half<BFloat16>(bits) : widen_half<Float16>(bits);
}

__device__ inline unsigned magnitude_of(const RankJob& job, std::int64_t i) {
  const float x = element_of(job.tensor, i);
  return canonical_bits(magnitude_bits(job.base.data ? x - element_of(job.base, i) : x));
}

// Makes of counts [warps][kDigits] the places where each warp puts its elements of a digit. By one warp.
__device__ void count_to_places(unsigned* counts, unsigned warps) {
  const unsigned lane = threadIdx.x % kWarp;
  unsigned mine = 0;
  for (unsigned d = lane * kDigitsPerLane; d < (lane + 1) * kDigitsPerLane; ++d) {
    for (unsigned w = 0; w < warps; ++w) mine += counts[w * kDigits + d];
  }
  unsigned upto = mine;
  for (unsigned step = 1; step < kWarp; step *= 2) {
    const unsigned other = __shfl_up_sync(kAll, upto, step);
    if (lane >= step) upto += other;
  }
  unsigned place = upto - mine;
  for (unsigned d = lane * kDigitsPerLane; d < (lane + 1) * kDigitsPerLane; ++d) {
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned count = counts[w * kDigits + d];
      counts[w * kDigits + d] = place;
      place += count;
    }
  }
}

// One pass of the sort, by the digit from bit `shift` of a pair on.
__device__ void sort_by_digit(const Pair* from, Pair* to, unsigned n, int shift, unsigned* counts) {
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const unsigned stretch = (n + blockDim.x - 1) / blockDim.x * kWarp;
  const unsigned begin = warp * stretch < n ? warp * stretch : n, end = n - begin < stretch ? n : begin + stretch;
  unsigned* const mine = counts + warp * kDigits;
  for (unsigned i = threadIdx.x; i < warps * kDigits; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  for (unsigned i = begin + lane; i < end; i += kWarp) atomicAdd(&mine[from[i] >> shift & (kDigits - 1)], 1u);
  __syncthreads();
  if (warp == 0) count_to_places(counts, warps);
  __syncthreads();
  for (unsigned at = begin; at < end; at += kWarp) {
    const unsigned i = at + lane;
    const unsigned active = end - at < kWarp ? (1u << (end - at)) - 1 : kAll;
    if (i < end) {
      const Pair pair = from[i];
      const unsigned digit = pair >> shift & (kDigits - 1);
      const unsigned equal = __match_any_sync(active, digit), before = equal & ((1u << lane) - 1);
      const unsigned place = mine[digit];
      to[place + __popc(before)] = pair;
      __syncwarp(active);
      if (before == 0) mine[digit] = place + __popc(equal);
    }
    __syncwarp();
  }
  __syncthreads();
}

// Sets the bits of a row, whose first element has that global index. ranks: by position.
__device__ void set_bits(const RankJob& job, std::int64_t index, const unsigned* ranks) {
  if (job.inner > 1) {
    for (std::int64_t j = threadIdx.x; j < job.length; j += blockDim.x) {
      const std::uint64_t at = index + j * job.inner;
      const unsigned drop = rank_threshold(job.first, job.step, ranks[j]);
      if (keeps_element(half_word(job.key, job.model, 0, at), drop, job.key, job.model, at)) {
        atomicOr(job.mask + (at >> 5), 1u << (at & 31));
      }
    }
    return;
  }
  // A random draw serves eight elements.
  const std::int64_t last = (index + job.length + 7) >> 3;
  for (std::int64_t block = (index >> 3) + threadIdx.x; block < last; block += blockDim.x) {
    const auto counter = static_cast<std::uint64_t>(block);
    std::uint64_t words[4] = {counter, counter >> 32, job.model, 0};
    philox4x32(words, job.key);
    unsigned bits = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const std::int64_t at = block * 8 + k, j = at - index;
      if (j < 0 || j >= job.length) continue;
      const unsigned half = static_cast<unsigned>(words[k / 2] >> 16 * (k & 1)) & 0xFFFFu;
      const unsigned drop = rank_threshold(job.first, job.step, ranks[j]);
      bits |= unsigned{keeps_element(half, drop, job.key, job.model, at)} << k;
    }
    // Rows share the words at their ends.
    if (bits) atomicOr(job.mask + (block >> 2), bits << 8 * (block & 3));
  }
}

__global__ void __launch_bounds__(kMostWarps* kWarp) rank_kernel(const __grid_constant__ Input p) {
  __shared__ unsigned differing;
  const RankJob& job = p.job;
  const auto n = static_cast<unsigned>(job.length);
  Pair* const storage = dynamic_shared<Pair>();
  unsigned* const counts = reinterpret_cast<unsigned*>(storage + (p.workspace ? 0 : 2 * n));
  Pair* const pairs = p.workspace ? p.workspace + blockIdx.x * 2ull * n : storage;
  for (std::int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const std::int64_t index = row / job.inner * job.length * job.inner + row % job.inner;
    Pair *from = pairs, *to = pairs + n;
    if (threadIdx.x == 0) differing = 0;
    __syncthreads();
    const unsigned first = magnitude_of(job, index);
    unsigned unlike = 0;
    for (unsigned j = threadIdx.x; j < n; j += blockDim.x) {
      const unsigned magnitude = magnitude_of(job, index + j * job.inner);
      unlike |= magnitude ^ first;
      from[j] = Pair{magnitude} << 32 | j;
    }
    if (unlike) atomicOr(&differing, unlike);
    __syncthreads();
    for (int shift = 0; shift < 32; shift += 8) {
      // The same for all threads.
      if ((differing >> shift & (kDigits - 1)) == 0) continue;
      sort_by_digit(from, to, n, 32 + shift, counts);
      Pair* const sorted = to;
      to = from;
      from = sorted;
    }
    unsigned* const ranks = reinterpret_cast<unsigned*>(to);
    for (unsigned r = threadIdx.x; r < n; r += blockDim.x) ranks[static_cast<unsigned>(from[r])] = r;
    __syncthreads();
    set_bits(job, index, ranks);
    __syncthreads();
  }
}

struct Launch {
  unsigned blocks, threads;
  std::size_t shared, workspace;
};

Launch launch_of(std::int64_t rows, std::int64_t length, int device) {
  const auto warps =
      static_cast<unsigned>(std::min<std::int64_t>(kMostWarps, std::max<std::int64_t>(1, length / kElementsPerWarp)));
  const std::size_t counts = warps * kDigits * sizeof(unsigned), pairs = 2 * length * sizeof(Pair);
  const bool fits = counts + pairs <= kMostShared;
  const std::size_t room = fits ? SIZE_MAX : std::max<std::size_t>(1, kMostWorkspace / pairs);
  // 2048 threads of a multiprocessor are 64 warps.
  const std::size_t full = std::size_t{1} * multiprocessors(device) * (64 / warps);
  const auto blocks = static_cast<unsigned>(std::min({static_cast<std::size_t>(rows), full, room}));
  return {blocks, warps * kWarp, counts + (fits ? pairs : 0), fits ? 0 : blocks * pairs};
}

}  // namespace

std::size_t rank_workspace(std::int64_t rows, std::int64_t length, int device) {
  return launch_of(rows, length, device).workspace;
}

void rank_mask(const RankJob& job, std::int64_t outer, void* workspace, const Stream& stream) {
  const std::int64_t rows = outer * job.inner;
  const Launch how = launch_of(rows, job.length, stream.device);
  const std::string what = "rank_mask of " + std::to_string(rows) + " rows of " + std::to_string(job.length);
  {
    const OnDevice current(stream.device);
    const std::size_t words = (rows * job.length + 31) / 32;
    check(cudaMemsetAsync(job.mask, 0, words * sizeof *job.mask, static_cast<cudaStream_t>(stream.handle)), what);
  }
  const Input input{job, rows, how.workspace ? static_cast<Pair*>(workspace) : nullptr};
  launch(what, stream, rank_kernel, {how.blocks, how.threads, how.shared}, input);
}

}  // namespace fastmerge::cuda
