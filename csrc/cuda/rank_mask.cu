// Masks by rank: kernels/rank_mask.py.
//
// An element is kept where its random word reaches the drop threshold of its rank, which falls along the row. Bins
// decide nearly all rows (rank_bins.cu). The others are sorted: by radix, stably, with eight bits at a time. A row lies
// in shared memory twice where it fits, else in a workspace. Each warp owns a stretch of the row, so that places rise
// with positions.
#include <algorithm>

#include "rank_mask.h"

namespace fastmerge::cuda {
namespace {

constexpr int kDigits = 256, kDigitsPerLane = kDigits / kWarp;
constexpr int kMostWarps = 16;
constexpr int kElementsPerWarp = 128;
// RankedMethod.scratch_bytes counts on it. One row may take more.
constexpr std::size_t kMostWorkspace = std::size_t{20} << 20;

// Magnitude and position of an element.
using Pair = unsigned long long;

struct Input {
  RankRows rows;
  Pair* workspace;       // null where rows fit the shared memory
  const unsigned* left;  // per row of each model, 1 where it is left to be sorted; null: all are
};

// Makes of counts [warps][kDigits] the places where each warp puts its elements of a digit. By one warp.
__device__ void count_to_places(unsigned* counts, unsigned warps) {
  const unsigned lane = threadIdx.x % kWarp;
  unsigned mine = 0;
  for (unsigned d = lane * kDigitsPerLane; d < (lane + 1) * kDigitsPerLane; ++d) {
    for (unsigned w = 0; w < warps; ++w) mine += counts[w * kDigits + d];
  }
  unsigned place = sum_upto(mine) - mine;
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
    const unsigned active = end - at < kWarp ? (1u << (end - at)) - 1 : kAllOfWarp;
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

// Calls use(k, j, half) for the elements of a row that are in memory side by side: eight to a random draw, of which
// `half` is the element's 16 bits; then end(block) after each eight.
template <class Use, class End>
__device__ __forceinline__ void for_draws(const RankRows& rows, const RankModel& model, std::int64_t index, Use use,
                                          End end) {
  const std::int64_t last = (index + rows.length + 7) >> 3;
  for (std::int64_t block = (index >> 3) + threadIdx.x; block < last; block += blockDim.x) {
    const auto counter = static_cast<std::uint64_t>(block);
    std::uint64_t words[4] = {counter, counter >> 32, model.model, 0};
    philox4x32(words, rows.key);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const std::int64_t j = block * 8 + k - index;
      if (j < 0 || j >= rows.length) continue;
      use(k, static_cast<unsigned>(j), static_cast<unsigned>(words[k / 2] >> 16 * (k & 1)) & 0xFFFFu);
    }
    end(block);
  }
}

// Sets the bits of a row, whose first element has that global index. ranks: by position.
__device__ void set_bits(const RankRows& rows, const RankModel& model, std::int64_t index, const unsigned* ranks) {
  const auto keeps = [&](unsigned half, unsigned rank, std::int64_t at) {
    return keeps_element(half, rank_threshold(model.first, model.step, rank), rows.key, model.model, at);
  };
  if (rows.inner > 1) {
    for (std::int64_t j = threadIdx.x; j < rows.length; j += blockDim.x) {
      const std::int64_t at = index + j * rows.inner;
      if (keeps(half_word(rows.key, model.model, 0, at), ranks[j], at)) {
        atomicOr(model.mask + (at >> 5), 1u << (at & 31));
      }
    }
    return;
  }
  unsigned bits = 0;
  for_draws(
      rows, model, index,
      [&](int k, unsigned j, unsigned half) { bits |= unsigned{keeps(half, ranks[j], index + j)} << k; },
      // Rows share the words at their ends.
      [&](std::int64_t block) {
        if (bits) atomicOr(model.mask + (block >> 2), bits << 8 * (block & 3));
        bits = 0;
      });
}

__global__ void __launch_bounds__(kMostWarps* kWarp) rank_kernel(const __grid_constant__ Input p) {
  __shared__ unsigned differing;
  const auto n = static_cast<unsigned>(p.rows.length);
  Pair* const storage = dynamic_shared<Pair>();
  unsigned* const counts = reinterpret_cast<unsigned*>(storage + (p.workspace ? 0 : 2 * n));
  Pair* const pairs = p.workspace ? p.workspace + blockIdx.x * 2ull * n : storage;
  for (std::int64_t unit = blockIdx.x; unit < p.rows.rows * p.rows.count; unit += gridDim.x) {
    if (p.left && !p.left[unit]) continue;
    const RankModel& model = p.rows.models[unit % p.rows.count];
    const std::int64_t row = unit / p.rows.count, inner = p.rows.inner;
    const std::int64_t index = p.rows.offset + row / inner * p.rows.length * inner + row % inner;
    Pair *from = pairs, *to = pairs + n;
    if (threadIdx.x == 0) differing = 0;
    __syncthreads();
    const unsigned first = magnitude_at(p.rows, model, index);
    unsigned unlike = 0;
    for (unsigned j = threadIdx.x; j < n; j += blockDim.x) {
      const unsigned magnitude = magnitude_at(p.rows, model, index + j * inner);
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
    set_bits(p.rows, model, index, ranks);
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
  const bool fits = counts + pairs <= kMostRowBytes;
  const std::size_t room = fits ? SIZE_MAX : std::max<std::size_t>(1, kMostWorkspace / pairs);
  // 2048 threads of a multiprocessor are 64 warps.
  const std::size_t full = std::size_t{1} * multiprocessors(device) * (64 / warps);
  const auto blocks = static_cast<unsigned>(std::min({static_cast<std::size_t>(rows), full, room}));
  return {blocks, warps * kWarp, counts + (fits ? pairs : 0), fits ? 0 : blocks * pairs};
}

// Of what tells which rows are left, at the start of the workspace.
std::size_t left_bytes(std::int64_t rows, std::int64_t length) {
  return has_bins(1, length) ? (rows * sizeof(unsigned) + 7) / 8 * 8 : 0;
}

}  // namespace

std::size_t rank_workspace(std::int64_t rows, std::int64_t length, int device) {
  return launch_of(rows, length, device).workspace + left_bytes(rows, length);
}

void rank_mask(const RankJob& job, void* workspace, const Stream& stream) {
  const std::int64_t rows = job.outer * job.inner, units = rows * static_cast<std::int64_t>(job.models.size());
  const Launch how = launch_of(units, job.length, stream.device);
  const std::string what = "rank_mask of " + std::to_string(units) + " rows of " + std::to_string(job.length);
  char* const pairs = static_cast<char*>(workspace) + left_bytes(units, job.length);
  Input input{{{}, job.base, job.length, job.inner, job.offset, rows, job.key, {}, 0},
              how.workspace ? reinterpret_cast<Pair*>(pairs) : nullptr,
              nullptr};
  for (std::uint32_t round = 0; round < kPhiloxRounds; ++round) {
    input.rows.round_keys[round][0] = static_cast<std::uint32_t>(job.key) + kWeyl0 * round;
    input.rows.round_keys[round][1] = static_cast<std::uint32_t>(job.key >> 32) + kWeyl1 * round;
  }
  const auto whole = [&](Array& array) {
    if (array.data) array.data = moved(array.data, array.dtype, -job.offset);
  };
  whole(input.rows.base);
  for (RankModel model : job.models) {
    const OnDevice current(stream.device);
    const std::size_t words = (job.offset % 32 + rows * job.length + 31) / 32;
    check(cudaMemsetAsync(model.mask, 0, words * sizeof *model.mask, static_cast<cudaStream_t>(stream.handle)), what);
    model.mask -= job.offset / 32;
    whole(model.tensor);
    input.rows.models[input.rows.count++] = model;
  }
  if (has_bins(job.inner, job.length)) {
    unsigned* const left = static_cast<unsigned*>(workspace);
    launch_rank_bins(input.rows, left, what, stream);
    input.left = left;
  }
  launch(what, stream, rank_kernel, {how.blocks, how.threads, how.shared}, input);
}

}  // namespace fastmerge::cuda
