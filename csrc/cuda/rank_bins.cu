// Masks by rank, without a sort: a block counts the magnitudes of a row in bins, which give every element its rank
// within a few, and so nearly always a decision. What is undecided is ranked exactly, many magnitudes in one more pass:
// deltas of 16-bit weights have few, and a bin with an undecided element as a rule no other. See rank_mask.cu.
#include "rank_codes.h"
#include "rank_draws.h"

namespace fastmerge::cuda {
namespace {

constexpr int kMostUndecided = 2048;
// Bins cost as much as 2048 elements. Positions and ranks have 16 bits.
constexpr std::int64_t kLeast = 512, kMost = 65535;

struct Input {
  RankRows rows;
  unsigned* left;
  float share;  // an eighth of that of an element in a row
};

// Blocks that a multiprocessor should hold: the compiler fits registers to it. Where vectors are loaded again and again
// it needs more of them.
template <class T, bool kHeld>
constexpr int kBlocks = kHeld && !std::is_void_v<T> ? 5 : 4;

// A block per row of each model, whose elements are side by side.
template <class T, bool kHeld>
__global__ void __launch_bounds__(kRankThreads, kBlocks<T, kHeld>) rank_bins_kernel(const __grid_constant__ Input p) {
  __shared__ uint4 words[kBins / 4], starts[kBins / 8];
  __shared__ unsigned undecided[kMostUndecided], count;
  const RankModel& model = p.rows.models[blockIdx.x % p.rows.count];
  const Draws<T, kHeld> row(p.rows, model, blockIdx.x / p.rows.count);
  words[threadIdx.x] = words[threadIdx.x + kRankThreads] = make_uint4(0, 0, 0, 0);
  if (threadIdx.x == 0) count = 0;
  const auto for_magnitudes = [](const Range& range, auto use) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (range.has(k)) use(k);
    }
  };
  unsigned magnitudes[kVector];
  Extent extent{~0u, 0, 0.0f};
  for (unsigned d = threadIdx.x; d < row.count; d += kRankThreads) {
    row.load(d, magnitudes);
    for_magnitudes(row.range(d), [&](int k) {
      extent.least = magnitudes[k] < extent.least ? magnitudes[k] : extent.least;
      extent.greatest = magnitudes[k] > extent.greatest ? magnitudes[k] : extent.greatest;
      extent.sum += bit_cast<float>(magnitudes[k]);
    });
  }
  const Bins bins(extent_of_all(extent), p.share, reinterpret_cast<unsigned*>(words));
  for (unsigned d = threadIdx.x; d < row.count; d += kRankThreads) {
    row.get(d, magnitudes);
    for_magnitudes(row.range(d), [&](int k) { atomicAdd(&bins[magnitudes[k]], 1u); });
  }
  __syncthreads();
  counts_to_limits(words, starts, model);
  for (unsigned d = threadIdx.x; d < row.count; d += kRankThreads) {
    row.get(d, magnitudes);
    const auto draw = static_cast<std::uint64_t>(row.draw(d));
    std::uint64_t random[4] = {draw, draw >> 32, model.model, 0};
#pragma unroll
    for (const auto& key : p.rows.round_keys) philox_round<std::uint64_t>(random, key[0], key[1]);
    unsigned kept = 0, dropped = 0, all = 0;
    for_magnitudes(row.range(d), [&](int k) {
      all |= 1u << k;
      const auto word = static_cast<unsigned>(random[k / 2]), half = k & 1 ? word & 0xFFFF0000u : word << 16;
      const unsigned limits = bins[magnitudes[k]];
      // Half of the word decides unless it equals that of a threshold.
      set_where_above(kept, half, limits, 1u << k);
      set_where_above(dropped, limits << 16, half, 1u << k);
    });
    // Rows share the words at their ends.
    if (kept) atomicOr(model.mask + (draw >> 2), kept << 8 * (draw & 3));
    unsigned unsure = all & ~(kept | dropped);
    if (unsure == 0) continue;
    for (unsigned place = atomicAdd(&count, static_cast<unsigned>(__popc(unsure))); unsure; unsure &= unsure - 1) {
      const int k = __ffs(static_cast<int>(unsure)) - 1;
      const auto low = static_cast<unsigned>(k & 2 ? random[1] : random[0]);
      const auto high = static_cast<unsigned>(k & 2 ? random[3] : random[2]);
      const unsigned half = (k & 4 ? high : low) >> 16 * (k & 1) & 0xFFFFu;
      if (place < kMostUndecided) undecided[place++] = static_cast<unsigned>(row.position(d) + k) << 16 | half;
    }
  }
  __syncthreads();
  void* const storage = dynamic_shared<uint4>() + (kHeld ? row.count * (kVector / 4) : 0);
  const bool decided = count == 0 || (count <= kMostUndecided &&
                                      decide_by_rank(row, bins, words, reinterpret_cast<std::uint16_t*>(starts),
                                                     undecided, count, p.rows, model, storage));
  // What is left is decided again, the same for what was decided.
  if (threadIdx.x == 0) p.left[blockIdx.x] = !decided;
}

}  // namespace

bool has_bins(std::int64_t inner, std::int64_t length) { return inner == 1 && length >= kLeast && length <= kMost; }

void launch_rank_bins(const RankRows& rows, unsigned* left, const std::string& what, const Stream& stream) {
  // A row takes part in one draw more than it fills.
  const std::size_t draws = rows.length / kVector + 2, held = draws * kVector * sizeof(unsigned);
  const std::size_t shared = spans_of(draws) * (kSpanGroups * sizeof(uint4) + kCodes * sizeof(std::uint16_t));
  const Input input{rows, left, 0.125f / static_cast<float>(rows.length)};
  const auto run = [&](auto* dtype) {
    using T = std::remove_pointer_t<decltype(dtype)>;
    const auto blocks = static_cast<unsigned>(rows.rows * rows.count);
    if (shared + held <= kMostRowBytes) {
      return launch(what, stream, rank_bins_kernel<T, true>, {blocks, kRankThreads, shared + held}, input);
    }
    launch(what, stream, rank_bins_kernel<T, false>, {blocks, kRankThreads, shared}, input);
  };
  if (rows.offset % kVector || rows.length % kVector) return run(static_cast<void*>(nullptr));
  Tensors tensors{{}, rows.base, 0};
  for (unsigned k = 0; k < rows.count; ++k) tensors.tensors.push_back(rows.models[k].tensor);
  with_dtype(tensors, run);
}

}  // namespace fastmerge::cuda
