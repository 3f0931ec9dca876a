// The exact ranks of what bins leave undecided, many magnitudes in one more pass over the row: see rank_bins.cu.
#pragma once

#include "rank_bins.h"

namespace fastmerge::cuda {

// Magnitudes that are ranked in one pass: codes of four bits tell them apart. Rows with more than so many passes are
// sorted.
constexpr unsigned kCodes = 15;
constexpr int kMostPasses = 8;
// Elements whose codes lie in one word for each bit; and such groups that are counted together.
constexpr unsigned kGroup = 32, kGroupDraws = kGroup / kVector, kSpanGroups = 4;

// A magnitude that is ranked in a pass. Bit i of its code is bit 8 * i of `bits`.
struct Wanted {
  unsigned magnitude, bits, start, less;
};
// In place of a count: a bin with an undecided element; the code is added. Entries that are none have no bits.
constexpr unsigned kTaken = kCodes + 1, kEntries = 2 * kTaken;

// The codes of the draws of a group: from a word for each draw to a word for each bit, or back.
__device__ inline uint4 transposed(const uint4& words) {
  const unsigned low0 = __byte_perm(words.x, words.y, 0x5140), low1 = __byte_perm(words.z, words.w, 0x5140);
  const unsigned high0 = __byte_perm(words.x, words.y, 0x7362), high1 = __byte_perm(words.z, words.w, 0x7362);
  return make_uint4(__byte_perm(low0, low1, 0x5410), __byte_perm(low0, low1, 0x7632), __byte_perm(high0, high1, 0x5410),
                    __byte_perm(high0, high1, 0x7632));
}

__host__ __device__ constexpr unsigned spans_of(unsigned draws) {
  return (draws + kGroupDraws * kSpanGroups - 1) / (kGroupDraws * kSpanGroups);
}

// Which of the elements of a group have a code, whose bits are in those words.
__device__ inline unsigned equals(const uint4& words, unsigned code) {
  const auto where = [=](unsigned word, int bit) { return word ^ ((code >> bit & 1u) - 1u); };
  return where(words.x, 0) & where(words.y, 1) & where(words.z, 2) & where(words.w, 3);
}

constexpr unsigned kDone = ~0u;

// Decides what is undecided, `count` elements with the position in the high half and their random number in the low
// one: of each bin those of one magnitude in a pass, up to kCodes of them. False where they have too many magnitudes.
template <class Row>
__device__ inline bool decide_by_rank(const Row& row, const Bins& bins, uint4* words, const std::uint16_t* starts,
                                      unsigned* undecided, unsigned count, const RankRows& rows, const RankModel& model,
                                      void* storage) {
  __shared__ Wanted wanted[kEntries];
  __shared__ unsigned found, remaining;
  const unsigned lane = threadIdx.x % kWarp, spans = spans_of(row.count), groups = spans * kSpanGroups;
  uint4* const codes = static_cast<uint4*>(storage);
  std::uint16_t* const before = reinterpret_cast<std::uint16_t*>(codes + groups);
  for (int pass = 0; pass < kMostPasses; ++pass) {
    words[threadIdx.x] = words[threadIdx.x + kRankThreads] = make_uint4(0, 0, 0, 0);
    if (threadIdx.x < kEntries) wanted[threadIdx.x] = {0, 0, 0, 0};
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    if (threadIdx.x == 0) remaining = 0;
    for (unsigned u = threadIdx.x; u < count; u += kRankThreads) {
      if (undecided[u] == kDone) continue;
      const unsigned magnitude = row.at(undecided[u] >> 16);
      if (atomicOr(&bins[magnitude], kTaken)) continue;
      const unsigned code = 1 + atomicAdd(&found, 1u);
      if (code > kCodes) continue;
      const unsigned bits = (code & 1) | (code & 2) << 7 | (code & 4) << 14 | (code & 8) << 21;
      wanted[kTaken + code] = {magnitude, bits, starts[bins.number(magnitude)], 0};
      atomicOr(&bins[magnitude], code);
    }
    __syncthreads();
    for (unsigned d = threadIdx.x; d < row.count; d += kRankThreads) {
      unsigned magnitudes[kVector], bits = 0, less = 0;
      row.get(d, magnitudes);
      const Range range = row.range(d);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (!range.has(k)) continue;
        const Wanted& other = wanted[bins[magnitudes[k]]];
        if (magnitudes[k] == other.magnitude) bits += other.bits << k;
        if (magnitudes[k] < other.magnitude) less |= 1u << k;
      }
      reinterpret_cast<unsigned*>(codes)[d] = bits;
      // Other magnitudes in a bin are rare.
      if (less == 0) continue;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (less >> k & 1) atomicAdd(&wanted[bins[magnitudes[k]]].less, 1u);
      }
    }
    __syncthreads();
    for (unsigned group = threadIdx.x; group < groups; group += kRankThreads) codes[group] = transposed(codes[group]);
    __syncthreads();
    const unsigned used = found < kCodes ? found : kCodes;
    for (unsigned code = 1 + threadIdx.x / kWarp; code <= used; code += kRankThreads / kWarp) {
      for (unsigned first = 0, sum = 0; first < spans; first += kWarp) {
        const unsigned span = first + lane;
        unsigned equal = 0;
        // Eight threads that read at a time begin at groups of which no two are in the same banks.
        for (unsigned i = 0; i < kSpanGroups && span < spans; ++i) {
          equal += __popc(equals(codes[span * kSpanGroups + (i + lane / 2) % kSpanGroups], code));
        }
        const unsigned upto = sum + sum_upto(equal);
        if (span < spans) before[(code - 1) * spans + span] = static_cast<std::uint16_t>(upto - equal);
        sum = __shfl_sync(kAllOfWarp, upto, kWarp - 1);
      }
    }
    __syncthreads();
    for (unsigned u = threadIdx.x; u < count; u += kRankThreads) {
      if (undecided[u] == kDone) continue;
      const unsigned position = undecided[u] >> 16, magnitude = row.at(position), entry = bins[magnitude];
      const Wanted& own = wanted[entry];
      if (own.magnitude != magnitude || entry <= kTaken) {
        atomicOr(&remaining, 1u);
        continue;
      }
      const unsigned code = entry - kTaken, place = position - row.position(0);
      const unsigned group = place / kGroup, span = group / kSpanGroups;
      unsigned rank = own.start + own.less + before[(code - 1) * spans + span];
      for (unsigned g = span * kSpanGroups; g < group; ++g) rank += __popc(equals(codes[g], code));
      rank += __popc(equals(codes[group], code) & ((1u << place % kGroup) - 1));
      const unsigned drop = rank_threshold(model.first, model.step, rank);
      const std::int64_t at = row.index(position);
      if (keeps_element(undecided[u] & 0xFFFFu, drop, rows.key, model.model, at)) {
        atomicOr(model.mask + (at >> 5), 1u << (at & 31));
      }
      undecided[u] = kDone;
    }
    __syncthreads();
    if (remaining == 0) return true;
  }
  return false;
}

}  // namespace fastmerge::cuda
