// Keep rules on the device: which of the eight elements of a vector take part. Contract: kernels/keep.py.
#pragma once

#include "vectors.h"

namespace fastmerge::cuda {

// A band without an upper end is a kind of its own, since it costs half of a band.
enum Kind : int { kKeepAll, kKeepTop, kKeepBand, kKeepRandom, kKeepMask };

// A boundary: what the magnitude must exceed before its break index, and from there on.
struct Cut {
  std::uint32_t vector;  // that the break index lies in
  std::int32_t split;    // its position there
  std::int32_t below, above;
};

struct Band {
  Cut inside, outside;
};

// Vectors are counted from the first of the part of the tensor at hand; there are fewer than kNoVector.
constexpr std::uint32_t kNoVector = 0xFFFFFFFFu;

using RoundKeys = std::uint32_t[kPhiloxRounds][2];

struct KeepRule {
  std::int64_t first;  // global index of the first element of vector 0, which begins `shift` elements before the part
  Kind kind;
  std::int32_t shift;
  union {
    struct {
      Band cuts;
      // What select() writes, where that is not known to the host: for the boundary inside, and the one outside.
      const std::int64_t *inside, *outside;
    } band;
    struct {
      RoundKeys keys;
      std::uint32_t model;
      std::uint32_t limit;  // the high half of the drop threshold, in the high half
      std::uint32_t low;    // its low half
    } random;
    const std::uint32_t* mask;
  };
};

// The rule for a part of a tensor whose first element has global index `offset` and is element `shift` of vector 0.
KeepRule make_rule(const Keep& keep, std::uint64_t offset, int shift);

__host__ __device__ inline Cut cut_at(std::int64_t threshold, std::int64_t break_index, std::int64_t offset,
                                      int shift) {
  std::int64_t at = break_index - offset;
  constexpr std::int64_t kNever = std::int64_t{kNoVector} * kVector;
  at = at < 0 ? shift : at < kNever - shift ? at + shift : kNever;
  return {static_cast<std::uint32_t>(at / kVector), static_cast<std::int32_t>(at % kVector),
          threshold_at(threshold, 1, 0), threshold_at(threshold, 0, 0)};
}

constexpr std::int64_t kInfinityBits = 0x7F800000;

// The band of a rule, whose boundaries may lie in memory; false where one was not found. A boundary among the NaNs
// counts as not found: kKeepTop compares numbers.
__device__ inline bool band_of(const KeepRule& rule, Band& band) {
  if (rule.kind != kKeepTop && rule.kind != kKeepBand) return true;
  band = rule.band.cuts;
  bool found = true;
  const auto take = [&](Cut& cut, const std::int64_t* row) {
    if (row == nullptr) return;
    found = found && row[2] == 0 && row[0] <= kInfinityBits;
    cut = cut_at(row[0], row[1], rule.first + rule.shift, rule.shift);
  };
  take(band.inside, rule.band.inside);
  take(band.outside, rule.band.outside);
  return found;
}

// Whether a rule is cheap only where global indices of vectors are multiples of 8.
inline bool in_blocks(const KeepRule& rule) { return rule.kind == kKeepRandom || rule.kind == kKeepMask; }

// ---- bands ----

// A cut seen from a vector: `below` holds for the elements before `split`, `above` for the rest.
struct Seen {
  std::int32_t below, above;
  int split;

  __device__ std::int32_t threshold(int j) const { return j < split ? below : above; }
};

__device__ inline std::int32_t threshold_of(const Cut& cut, std::uint32_t vector) {
  return vector < cut.vector ? cut.below : cut.above;
}

__device__ inline Seen seen(const Cut& cut, std::uint32_t vector) {
  return {cut.below, cut.above, vector < cut.vector ? kVector : vector == cut.vector ? cut.split : 0};
}

// magnitude_bits(delta) > threshold, in one instruction. The threshold is that of a magnitude up to infinity, or -1,
// which has the bits of a NaN and keeps everything.
__device__ inline bool exceeds(float delta, std::int32_t threshold) {
  return !(std::fabs(delta) <= bit_cast<float>(threshold));
}

template <class Use>
__device__ inline void keep_top(const Cut& cut, const float (&delta)[kVector], std::uint32_t vector, Use use) {
  if (vector == cut.vector) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) use(j, exceeds(delta[j], j < cut.split ? cut.below : cut.above));
    return;
  }
  const std::int32_t threshold = threshold_of(cut, vector);
#pragma unroll
  for (int j = 0; j < kVector; ++j) use(j, exceeds(delta[j], threshold));
}

template <class Use>
__device__ inline void keep_band(const Band& band, const float (&delta)[kVector], std::uint32_t vector, Use use) {
  if (vector == band.inside.vector || vector == band.outside.vector) {
    const Seen inside = seen(band.inside, vector), outside = seen(band.outside, vector);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const std::int32_t bits = magnitude_bits(delta[j]);
      use(j, bits > inside.threshold(j) && !(bits > outside.threshold(j)));
    }
    return;
  }
  const std::int32_t low = threshold_of(band.inside, vector), high = threshold_of(band.outside, vector);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    const std::int32_t bits = magnitude_bits(delta[j]);
    use(j, bits > low && !(bits > high));
  }
}

// ---- random numbers ----

// The 16-bit numbers of a stream for eight elements from `index` on, two to a word.
template <bool kAligned>
__device__ inline void half_words(const KeepRule& rule, const RoundKeys& keys, std::int64_t index, std::uint32_t stream,
                                  unsigned (&words)[4]) {
  constexpr int kBlocks = kAligned ? 1 : 2;
  unsigned all[4 * kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const std::uint64_t block = static_cast<std::uint64_t>(index >> 3) + b;
    std::uint64_t counter[4] = {block, block >> 32, rule.random.model, stream};
#pragma unroll
    for (const auto& key : keys) philox_round<std::uint64_t>(counter, key[0], key[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) all[4 * b + i] = static_cast<unsigned>(counter[i]);
  }
  if constexpr (!kAligned) {
    // Moves the words down by the number of elements that come before `index` in its block.
    const int shift = static_cast<int>(index & 7);
#pragma unroll
    for (int i = 0; i < 6; ++i) all[i] = shift & 4 ? all[i + 2] : all[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) all[i] = shift & 2 ? all[i + 1] : all[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) all[i] = __funnelshift_r(all[i], all[i + 1], shift & 1 ? 16 : 0);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = all[i];
}

// Element j's number in the high half; what the low half holds does not matter.
__device__ inline unsigned half_at(const unsigned (&words)[4], int j) {
  return j & 1 ? words[j / 2] : words[j / 2] << 16;
}

// A word that is not 0 where a 16-bit half of `word` is 0.
__device__ inline unsigned zero_half(unsigned word) { return (word - 0x00010001u) & ~word & 0x80008000u; }

// keys: those of the rule, or the same ones elsewhere.
template <bool kAligned, class Use>
__device__ inline void keep_random(const KeepRule& rule, const RoundKeys& keys, std::int64_t index, Use use) {
  unsigned words[4];
  half_words<kAligned>(rule, keys, index, 0, words);
  const unsigned limit = rule.random.limit, low = rule.random.low;
  if (low != 0) {
    const unsigned both = limit | limit >> 16;
    unsigned undecided = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) undecided |= zero_half(words[i] ^ both);
    // One element in 65536.
    if (undecided != 0) {
      unsigned lower[4];
      half_words<kAligned>(rule, keys, index, 1, lower);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const unsigned word = (half_at(words, j) & 0xFFFF0000u) | half_at(lower, j) >> 16;
        use(j, word >= (limit | low));
      }
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) use(j, half_at(words, j) >= limit);
}

// Where the elements of a strided part lie in the tensor: Keep in jobs.h. No row: the part is not strided.
struct Stripes {
  std::int64_t start, row, stride;
};

// The same for eight elements of a strided part, the first of which may lie before it.
template <class Use>
__device__ inline void keep_random(const KeepRule& rule, const Stripes& part, std::int64_t first, Use use) {
  unsigned bits = 0;
#pragma unroll 1
  for (int j = 0; j < kVector;) {
    // What is left of a row, as if all eight were side by side with it.
    const std::int64_t number = (first + j) / part.row, within = first + j - number * part.row;
    const int end = part.row - within < kVector - j ? j + static_cast<int>(part.row - within) : kVector;
    keep_random<false>(rule, rule.random.keys, part.start + number * part.stride + within - j,
                       [&](int i, bool kept) { bits |= unsigned{kept && i >= j && i < end} << i; });
    j = end;
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) use(j, (bits >> j & 1u) != 0);
}

// ---- masks ----

// The bits of eight elements from `index` on. Only words of elements that exist are read.
template <bool kAligned>
__device__ inline unsigned mask_bits(const std::uint32_t* mask, std::int64_t index, Range range) {
  if constexpr (kAligned) {
    return reinterpret_cast<const std::uint8_t*>(mask)[index >> 3];
  } else {
    const std::int64_t first = index + range.first, last = index + range.last - 1;
    std::uint64_t words = mask[first >> 5];
    if (last >> 5 != first >> 5) words |= std::uint64_t{mask[last >> 5]} << 32;
    return static_cast<unsigned>(words >> (first & 31)) << range.first;
  }
}

template <bool kAligned, class Use>
__device__ inline void keep_masked(const KeepRule& rule, std::int64_t index, Range range, Use use) {
  const unsigned bits = mask_bits<kAligned>(rule.mask, index, range);
#pragma unroll
  for (int j = 0; j < kVector; ++j) use(j, (bits >> j & 1u) != 0);
}

// Calls use(j, kept) for each element of a vector of deltas; `band` is that of band_of. kAligned promises that the
// vector begins in the tensor, at a global index that is a multiple of 8 where in_blocks(rule).
template <bool kAligned, class Use>
__device__ inline void keep_vector(const KeepRule& rule, const Band& band, const float (&delta)[kVector],
                                   std::uint32_t vector, Range range, Use use) {
  const std::int64_t index = rule.first + std::int64_t{vector} * kVector;
  if (rule.kind == kKeepTop) {
    keep_top(band.inside, delta, vector, use);
  } else if (rule.kind == kKeepRandom) {
    keep_random<kAligned>(rule, rule.random.keys, index, use);
  } else if (rule.kind == kKeepBand) {
    keep_band(band, delta, vector, use);
  } else if (rule.kind == kKeepMask) {
    keep_masked<kAligned>(rule, index, range, use);
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) use(j, true);
  }
}

}  // namespace fastmerge::cuda
