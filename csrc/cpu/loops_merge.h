// Keep masks and the fused sparse merge. Part of loops.h.
#pragma once

#include "loops_input.h"

namespace fastmerge::cpu {
namespace {

// Elements of a tile of masks or float32 values: small enough that those of eight models stay in the second-level cache.
constexpr std::size_t kTile = 1024;
// A random mask starts at a multiple of 8 elements and is made in twice 8 elements per 64-bit lane.
constexpr std::size_t kMaskSize = kTile + 8 + 16 * kDoubles;

// Masks hold 0xFFFF for a kept element, 0 for a dropped one.
// For an element whose random word has the high half of the drop threshold: decides by the low halves, from stream 1.
bool keeps_low_half(std::uint64_t key, std::uint32_t model, std::uint32_t drop_low, std::uint64_t index) {
  const std::uint64_t block = index >> 3;
  std::uint64_t words[4] = {block, block >> 32, model, 1};
  philox4x32(words, key);
  return ((words[(index & 7) >> 1] >> (16 * (index & 1))) & 0xFFFFu) >= drop_low;
}

// The 16-bit random numbers of stream 0, for groups of 8 elements per 64-bit lane.
class HalfWords {
 public:
  static constexpr int kElements = 8 * kDoubles;

  HalfWords(std::uint64_t key, std::uint32_t model) : model_(model) {
    // Even lanes take the first half of the blocks of a group, odd lanes the second, so that joining the words of a block
    // also puts the blocks in order.
    for (int i = 0; i < kDoubles; ++i) lane_[i] = i / 2 + i % 2 * (kDoubles / 2);
    for (std::uint32_t round = 0; round < kPhiloxRounds; ++round) {
      keys_[round][0] = U64{} + static_cast<std::uint32_t>(key + kWeyl0 * round);
      keys_[round][1] = U64{} + static_cast<std::uint32_t>((key >> 32) + kWeyl1 * round);
    }
  }

  // Two groups from a block on, in the order of their elements. Side by side, since one waits for its own products.
  FASTMERGE_INLINE_MEMBER void two_groups(std::uint64_t block, H (&halves)[4]) const {
    U64 a[4], b[4];
    start(a, block);
    start(b, block + kDoubles);
    for (const auto& key : keys_) {
      philox_round<U64>(a, key[0], key[1]);
      philox_round<U64>(b, key[0], key[1]);
    }
    join(a, halves[0], halves[1]);
    join(b, halves[2], halves[3]);
  }

 private:
  FASTMERGE_INLINE_MEMBER void start(U64 (&counter)[4], std::uint64_t block) const {
    counter[0] = lane_ + block;
    counter[1] = counter[0] >> 32;
    counter[2] = U64{} + model_;
    counter[3] = U64{};
  }

  FASTMERGE_INLINE_MEMBER static void join(const U64 (&words)[4], H& first, H& second) {
    const U64 left = (words[0] & 0xFFFFFFFFu) | (words[1] << 32), right = (words[2] & 0xFFFFFFFFu) | (words[3] << 32);
    first = (H)first_words(left, right);
    second = (H)second_words(left, right);
  }

  U64 lane_, keys_[kPhiloxRounds][2];
  std::uint64_t model_;
};

// Fills the mask of the elements index .. index + n - 1 (n <= kTile) and returns its first element.
const std::uint16_t* random_mask(std::uint16_t* mask, const Keep& keep, std::uint64_t index, std::size_t n) {
  const auto key = static_cast<std::uint64_t>(keep.a);
  const auto model = static_cast<std::uint32_t>(keep.b);
  const auto drop_high = static_cast<std::uint32_t>(keep.c >> 16), drop_low = static_cast<std::uint32_t>(keep.c) & 0xFFFFu;
  const std::uint16_t* const result = mask + (index & 7);
  if (drop_high > 0xFFFFu) {
    std::memset(mask, 0, (n + 8) * sizeof *mask);
    return result;
  }
  const HalfWords words(key, model);
  constexpr int kStep = 2 * HalfWords::kElements;
  const H high = H{} + static_cast<std::uint16_t>(drop_high);
  const std::uint64_t last = (index + n + 7) >> 3;
  for (std::uint64_t block = index >> 3; block < last; block += kStep / 8, mask += kStep) {
    H halves[4];
    words.two_groups(block, halves);
    for (int j = 0; j < 4; ++j) store_as(mask + 2 * kWidth * j, halves[j] >= high);
    if (drop_low == 0) continue;
    S undecided{};
    for (int j = 0; j < 4; ++j) undecided |= (S)(halves[j] == high);
    if (mask_bits(undecided != 0) == 0) continue;
    std::uint16_t stored[kStep];
    std::memcpy(stored, halves, sizeof stored);
    for (int i = 0; i < kStep; ++i) {
      if (stored[i] == drop_high && !keeps_low_half(key, model, drop_low, (block << 3) + i)) mask[i] = 0;
    }
  }
  return result;
}

template <class T>
void band_mask(std::uint16_t* mask, const T* tensor, const T* base, std::int32_t inside, std::int32_t outside,
               std::size_t n) {
  for (std::size_t i = 0; i < n; i += kWidth) {
    const S bits = magnitude_bits(load(tensor + i) - load(base + i));
    store_halves(mask + i, (bits > inside) & ~(bits > outside));
  }
}

// The masks of the elements that load_pair puts first and second.
template <class T>
FASTMERGE_INLINE S first_mask(const std::uint16_t* mask) {
  return sizeof(T) == 2 ? load_as<S>(mask) << 16 >> 16 : load_signed_halves(mask);
}

template <class T>
FASTMERGE_INLINE S second_mask(const std::uint16_t* mask) {
  return sizeof(T) == 2 ? load_as<S>(mask) >> 16 : load_signed_halves(mask + kWidth);
}

// What differs from one segment of a range to the next: the thresholds change at break indices.
struct Segment {
  std::vector<std::int32_t> inside, outside;
  std::vector<const std::uint16_t*> masks;
};

// n is a number of whole pairs; kCount 0 takes the count at run time.
template <class T, int kCount, int kVote, bool kMasked>
void merge_uniform(T* out, const T* base, const T* const* tensors, const Merge& merge, const Segment& segment,
                   std::size_t n) {
  constexpr int kArrays = kCount ? kCount : 1;
  const int count = kCount ? kCount : static_cast<int>(merge.factors.size());
  MergeScalars s{merge.factors.data(), merge.weights.data(), merge.scale, merge.divisor, merge.divides};
  const std::int32_t* thresholds = segment.inside.data();
  const std::uint16_t* const* masks = segment.masks.data();
  // Copies, since `out` may alias anything as far as the compiler knows.
  const T* in[kArrays];
  const std::uint16_t* m[kArrays];
  float factors[kArrays], weights[kArrays];
  std::int32_t t[kArrays];
  if constexpr (kCount != 0) {
    tensors = std::copy_n(tensors, kCount, in) - kCount;
    masks = std::copy_n(masks, kMasked ? kCount : 0, m) - (kMasked ? kCount : 0);
    s.factors = std::copy_n(s.factors, kCount, factors) - kCount;
    s.weights = std::copy_n(s.weights, kCount, weights) - kCount;
    thresholds = std::copy_n(thresholds, kCount, t) - kCount;
  }
  for (std::size_t i = 0; i < n; i += kPair) {
    for (int k = 0; k < count; ++k) prefetch(tensors[k] + i);
    prefetch(base + i);
    const Pair b = load_pair(base + i);
    const auto part = [&](F delta, int k, S mask) {
      return Part<F, S>{delta, kMasked ? mask : magnitude_bits(delta) > thresholds[k]};
    };
    const F first = sparse_merge_element<kVote>(b.first, count, s, [&](int k) {
      return part(load_pair(tensors[k] + i).first - b.first, k, kMasked ? first_mask<T>(masks[k] + i) : S{});
    });
    const F second = sparse_merge_element<kVote>(b.second, count, s, [&](int k) {
      return part(load_pair(tensors[k] + i).second - b.second, k, kMasked ? second_mask<T>(masks[k] + i) : S{});
    });
    store_pair(out + i, first, second);
  }
}

template <class T, int kVote, bool kMasked>
void merge_counted(T* out, const T* base, const T* const* tensors, const Merge& merge, const Segment& segment,
                   std::size_t n) {
  switch (merge.factors.size()) {
    case 1: return merge_uniform<T, 1, kVote, kMasked>(out, base, tensors, merge, segment, n);
    case 2: return merge_uniform<T, 2, kVote, kMasked>(out, base, tensors, merge, segment, n);
    case 3: return merge_uniform<T, 3, kVote, kMasked>(out, base, tensors, merge, segment, n);
    case 4: return merge_uniform<T, 4, kVote, kMasked>(out, base, tensors, merge, segment, n);
    default: return merge_uniform<T, 0, kVote, kMasked>(out, base, tensors, merge, segment, n);
  }
}

template <class T, bool kMasked>
void merge_voted(T* out, const T* base, const T* const* tensors, const Merge& merge, const Segment& segment,
                 std::size_t n) {
  switch (merge.vote) {
    case kVoteNone: return merge_counted<T, kVoteNone, kMasked>(out, base, tensors, merge, segment, n);
    case kVoteWeighted: return merge_counted<T, kVoteWeighted, kMasked>(out, base, tensors, merge, segment, n);
    case kVoteSum: return merge_uniform<T, 0, kVoteSum, kMasked>(out, base, tensors, merge, segment, n);
    default: return merge_uniform<T, 0, kVoteCount, kMasked>(out, base, tensors, merge, segment, n);
  }
}

// One call's state on one thread.
class Merger {
 public:
  Merger(Output out, const Group& group, const Merge& merge)
      : out_(out), group_(group), merge_(merge), dtype_(shared_dtype(group, &out)) {
    for (const Keep& keep : merge.keeps) {
      masked_ |= keep.rule == kRuleRandom || (keep.rule == kRuleBand && keep.c <= kLargestBits);
    }
    const std::size_t count = merge.keeps.size();
    segment_.inside.resize(count);
    segment_.outside.resize(count);
    if (masked_) {
      mask_storage_.resize(count * kMaskSize);
      segment_.masks.resize(count);
    }
  }

  void run(std::size_t begin, std::size_t end) {
    for (std::size_t at = begin; at < end;) {
      std::size_t stop = masked_ ? std::min(end, at + kTile) : end;
      for (const Keep& keep : merge_.keeps) {
        if (keep.rule != kRuleBand) continue;
        for (const std::int64_t index : {keep.b, keep.d}) stop = first_break(index, at, stop);
      }
      set_thresholds(merge_.offset + at);
      at = segment(at, stop);
    }
  }

 private:
  std::size_t first_break(std::int64_t index, std::size_t at, std::size_t stop) const {
    const auto global = static_cast<std::uint64_t>(index);
    return global > merge_.offset + at && global < merge_.offset + stop ? global - merge_.offset : stop;
  }

  void set_thresholds(std::uint64_t index) {
    for (std::size_t k = 0; k < merge_.keeps.size(); ++k) {
      const Keep& keep = merge_.keeps[k];
      const bool band = keep.rule == kRuleBand;
      segment_.inside[k] = band ? threshold_at(keep.a, keep.b, static_cast<std::int64_t>(index)) : -1;
      segment_.outside[k] = band ? threshold_at(keep.c, keep.d, static_cast<std::int64_t>(index)) : kLargestBits;
    }
  }

  // Merges [at, stop), in which no threshold changes; returns stop.
  std::size_t segment(std::size_t at, std::size_t stop) {
    const std::size_t whole = whole_pairs(stop - at);
    if (whole && dtype_ == kBFloat16) at = uniform<BFloat16>(at, whole);
    if (whole && dtype_ == kFloat32) at = uniform<float>(at, whole);
    while (at < stop) at = tile(at, std::min(kTile, stop - at));
    return stop;
  }

  template <class T>
  std::size_t uniform(std::size_t at, std::size_t n) {
    std::vector<const T*> tensors;
    for (const Array& tensor : group_.tensors) tensors.push_back(static_cast<const T*>(tensor.data) + at);
    merge(static_cast<T*>(out_.data) + at, static_cast<const T*>(group_.base.data) + at, tensors.data(), at, n);
    return at + n;
  }

  // Mixed dtypes, float16, and the elements beyond the last whole pair: by tiles of float32.
  std::size_t tile(std::size_t at, std::size_t n) {
    const std::size_t count = group_.tensors.size();
    tiles_.resize((count + 1) * kTile);
    std::vector<const float*> tensors;
    for (std::size_t k = 0; k < count; ++k) {
      tensors.push_back(tiles_.data() + k * kTile);
      widen(tiles_.data() + k * kTile, group_.tensors[k], at, n);
    }
    float* base = tiles_.data() + count * kTile;
    widen(base, group_.base, at, n);
    merge(base, base, tensors.data(), at, padded(n));
    narrow(out_, at, base, n);
    return at + n;
  }

  template <class T>
  void merge(T* out, const T* base, const T* const* tensors, std::size_t at, std::size_t n) {
    if (!masked_) return merge_voted<T, false>(out, base, tensors, merge_, segment_, n);
    for (std::size_t k = 0; k < merge_.keeps.size(); ++k) {
      std::uint16_t* mask = mask_storage_.data() + k * kMaskSize;
      segment_.masks[k] = mask;
      if (merge_.keeps[k].rule == kRuleRandom) {
        segment_.masks[k] = random_mask(mask, merge_.keeps[k], merge_.offset + at, n);
      } else {
        band_mask(mask, tensors[k], base, segment_.inside[k], segment_.outside[k], n);
      }
    }
    merge_voted<T, true>(out, base, tensors, merge_, segment_, n);
  }

  Output out_;
  const Group& group_;
  const Merge& merge_;
  int dtype_;
  bool masked_ = false;
  Segment segment_;
  std::vector<std::uint16_t> mask_storage_;
  std::vector<float> tiles_;
};

void sparse_merge(Output out, const Group& group, const Merge& merge, std::size_t begin, std::size_t end) {
  Merger(out, group, merge).run(begin, end);
}

}  // namespace
}  // namespace fastmerge::cpu
