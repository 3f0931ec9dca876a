// Masks by rank, without a sort: a block counts the magnitudes of a row in bins, which give every element its rank
// within a few, and so nearly always a decision. What is undecided is ranked exactly, all elements of one magnitude
// together: deltas of 16-bit weights have few magnitudes. See rank_mask.cu.
#include "rank_draws.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarp = 32, kThreads = 256, kBins = 2048, kMostUndecided = 1024, kMostRounds = 32;
// Bins cost as much as 2048 elements. Sums of 16 bits count a row.
constexpr std::int64_t kLeast = 512, kMost = 65535;

struct Input {
  RankJob job;
  unsigned* left;
  bool held;    // whether the magnitudes of a row fit the shared memory
  float share;  // an eighth of that of an element in a row
};

// The least and the greatest magnitude of a row, and their sum.
struct Extent {
  unsigned least, greatest;
  float sum;
};

// That of all threads of a block.
__device__ inline Extent extent_of_all(Extent mine) {
  __shared__ Extent extents[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) mine.sum += __shfl_xor_sync(kAllOfWarp, mine.sum, step);
  mine.least = __reduce_min_sync(kAllOfWarp, mine.least);
  mine.greatest = __reduce_max_sync(kAllOfWarp, mine.greatest);
  if (threadIdx.x % kWarp == 0) extents[threadIdx.x / kWarp] = mine;
  __syncthreads();
  mine = {~0u, 0, 0.0f};
  for (const Extent& other : extents) {
    mine.least = other.least < mine.least ? other.least : mine.least;
    mine.greatest = other.greatest > mine.greatest ? other.greatest : mine.greatest;
    mine.sum += other.sum;
  }
  return mine;
}

// Of a number that each thread of a block has: the sums of those of the threads before, and of all.
struct Sums {
  unsigned before, all;
};

__device__ inline Sums sums_of(unsigned mine) {
  __shared__ unsigned sums[kThreads / kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned upto = mine;
  for (unsigned step = 1; step < kWarp; step *= 2) {
    const unsigned other = __shfl_up_sync(kAllOfWarp, upto, step);
    if (lane >= step) upto += other;
  }
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  Sums found{upto - mine, 0};
  for (unsigned w = 0; w < kThreads / kWarp; ++w) {
    if (w == warp) found.before += found.all;
    found.all += sums[w];
  }
  return found;
}

// Makes of the count of each bin what a half word decides there: above the high half, the drop threshold of the bin's
// first rank, it keeps; below the low half, that of its last rank, it drops.
__device__ inline void counts_to_limits(uint4* bins, const RankJob& job) {
  static_assert(kBins == kThreads * 8, "a thread has two words of four bins");
  const uint4 low = bins[2 * threadIdx.x], high = bins[2 * threadIdx.x + 1];
  unsigned each[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, mine = 0;
  for (const unsigned count : each) mine += count;
  unsigned rank = sums_of(mine).before;
#pragma unroll
  for (unsigned& bin : each) {
    const unsigned after = rank + bin;
    bin = (rank_threshold(job.first, job.step, rank) & 0xFFFF0000u) |
          rank_threshold(job.first, job.step, after - 1) >> 16;
    rank = after;
  }
  bins[2 * threadIdx.x] = make_uint4(each[0], each[1], each[2], each[3]);
  bins[2 * threadIdx.x + 1] = make_uint4(each[4], each[5], each[6], each[7]);
  __syncthreads();
}

// An element that is not decided yet: its position in the row, and its magnitude, or kRanked and its rank.
struct Undecided {
  unsigned position, value;
};
constexpr unsigned kRanked = 0x80000000u;

// Ranks those of one magnitude together: after what is less, and in the order of their positions. False where they have
// too many magnitudes. `words` has one per draw.
template <class T>
__device__ inline bool rank_undecided(const Draws<T>& row, Undecided* undecided, unsigned count, unsigned* words) {
  const unsigned lane = threadIdx.x % kWarp, each = (row.count + kThreads - 1) / kThreads;
  const unsigned first = threadIdx.x * each, end = first + each < row.count ? first + each : row.count;
  unsigned magnitudes[kVector];
  int rounds = 0;
  for (unsigned next = 0; next < count;) {
    const unsigned without = __ballot_sync(kAllOfWarp, next + lane < count && undecided[next + lane].value < kRanked);
    if (without == 0) {
      next += kWarp;
      continue;
    }
    if (rounds++ == kMostRounds) return false;
    const unsigned magnitude = undecided[next + __ffs(static_cast<int>(without)) - 1].value;
    unsigned less = 0, equal = 0;
    for (unsigned d = first; d < end; ++d) {
      row.get(d, magnitudes);
      const Range range = row.range(d);
      unsigned here = 0;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        less += range.has(k) && magnitudes[k] < magnitude;
        here |= unsigned{range.has(k) && magnitudes[k] == magnitude} << k;
      }
      words[d] = equal << kVector | here;
      equal += __popc(here);
    }
    const Sums sums = sums_of(less << 16 | equal);
    for (unsigned d = first; d < end; ++d) words[d] += (sums.before & 0xFFFFu) << kVector;
    __syncthreads();
    for (unsigned u = threadIdx.x; u < count; u += kThreads) {
      if (undecided[u].value != magnitude) continue;
      const unsigned place = undecided[u].position - row.position(0), word = words[place / kVector];
      const unsigned earlier = (word >> kVector) + __popc(word & ((1u << place % kVector) - 1));
      undecided[u].value = kRanked | ((sums.all >> 16) + earlier);
    }
    __syncthreads();
  }
  return true;
}

// A block per row, whose elements are side by side.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) rank_bins_kernel(const __grid_constant__ Input p) {
  __shared__ uint4 words[kBins / 4];
  __shared__ Undecided undecided[kMostUndecided];
  __shared__ unsigned count;
  unsigned* const bins = reinterpret_cast<unsigned*>(words);
  const RankJob& job = p.job;
  const Draws<T> row(p.job, p.held);
  words[threadIdx.x] = words[threadIdx.x + kThreads] = make_uint4(0, 0, 0, 0);
  if (threadIdx.x == 0) count = 0;
  const auto for_magnitudes = [](const Range& range, auto use) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (range.has(k)) use(k);
    }
  };
  unsigned magnitudes[kVector];
  Extent extent{~0u, 0, 0.0f};
  for (unsigned d = threadIdx.x; d < row.count; d += kThreads) {
    row.load(d, magnitudes);
    for_magnitudes(row.range(d), [&](int k) {
      extent.least = magnitudes[k] < extent.least ? magnitudes[k] : extent.least;
      extent.greatest = magnitudes[k] > extent.greatest ? magnitudes[k] : extent.greatest;
      extent.sum += bit_cast<float>(magnitudes[k]);
    });
  }
  extent = extent_of_all(extent);
  // Bins are even below an eighth of the mean magnitude, and as wide as their magnitudes above it, so that neither
  // zeros nor outliers leave most elements in a few. Where an element is not finite, all are in one bin.
  const float even = extent.sum * p.share;
  const auto spread = [=](unsigned magnitude) { return bit_cast<unsigned>(bit_cast<float>(magnitude) + even); };
  const unsigned low = spread(extent.least), span = spread(extent.greatest) - low;
  const int bits = 32 - __clz(static_cast<int>(span)), shift = bits > 11 ? bits - 11 : 0;
  const auto bin_of = [=](unsigned magnitude) { return (spread(magnitude) - low) >> shift; };
  for (unsigned d = threadIdx.x; d < row.count; d += kThreads) {
    row.get(d, magnitudes);
    for_magnitudes(row.range(d), [&](int k) { atomicAdd(&bins[bin_of(magnitudes[k])], 1u); });
  }
  __syncthreads();
  counts_to_limits(words, job);
  for (unsigned d = threadIdx.x; d < row.count; d += kThreads) {
    row.get(d, magnitudes);
    const auto draw = static_cast<std::uint64_t>(row.draw(d));
    std::uint64_t random[4] = {draw, draw >> 32, job.model, 0};
    philox4x32(random, job.key);
    unsigned kept = 0, unsure = 0;
    for_magnitudes(row.range(d), [&](int k) {
      const auto word = static_cast<unsigned>(random[k / 2]), half = k & 1 ? word & 0xFFFF0000u : word << 16;
      const unsigned limits = bins[bin_of(magnitudes[k])];
      // Half of the word decides unless it equals that of a threshold.
      if (half > limits) {
        kept |= 1u << k;
      } else if (half >= limits << 16) {
        unsure |= 1u << k;
      }
    });
    // Rows share the words at their ends.
    if (kept) atomicOr(job.mask + (draw >> 2), kept << 8 * (draw & 3));
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      if (!(unsure >> k & 1)) continue;
      const unsigned place = atomicAdd(&count, 1u);
      if (place < kMostUndecided) undecided[place] = {static_cast<unsigned>(row.position(d) + k), magnitudes[k]};
    }
  }
  __syncthreads();
  unsigned* const words_of_draws = dynamic_shared<unsigned>() + (p.held ? row.count * kVector : 0);
  const bool ranked = count <= kMostUndecided && rank_undecided(row, undecided, count, words_of_draws);
  // What is left is decided again, the same for what was decided.
  if (threadIdx.x == 0) p.left[blockIdx.x] = !ranked;
  if (!ranked) return;
  for (unsigned u = threadIdx.x; u < count; u += kThreads) {
    const std::uint64_t at = row.draw(0) * 8 + undecided[u].position - row.position(0);
    const unsigned drop = rank_threshold(job.first, job.step, undecided[u].value - kRanked);
    if (keeps_element(half_word(job.key, job.model, 0, at), drop, job.key, job.model, at)) {
      atomicOr(job.mask + (at >> 5), 1u << (at & 31));
    }
  }
}

}  // namespace

bool has_bins(std::int64_t inner, std::int64_t length) { return inner == 1 && length >= kLeast && length <= kMost; }

void launch_rank_bins(const RankJob& job, std::int64_t rows, unsigned* left, const std::string& what,
                      const Stream& stream) {
  // A row takes part in one draw more than it fills. Of each, a word counts what equals an undecided element.
  const std::size_t draws = job.length / kVector + 2, held = draws * kVector * sizeof(unsigned);
  std::size_t shared = draws * sizeof(unsigned);
  const bool fits = shared + held <= kMostRowBytes;
  if (fits) shared += held;
  const Input input{job, left, fits, 0.125f / static_cast<float>(job.length)};
  const Grid grid{static_cast<unsigned>(rows), kThreads, shared};
  if (job.offset % kVector || job.length % kVector) return launch(what, stream, rank_bins_kernel<void>, grid, input);
  with_dtype(Tensors{{job.tensor}, job.base, 0}, [&](auto* dtype) {
    launch(what, stream, rank_bins_kernel<std::remove_pointer_t<decltype(dtype)>>, grid, input);
  });
}

}  // namespace fastmerge::cuda
