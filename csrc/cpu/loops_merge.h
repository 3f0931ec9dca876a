// The fused sparse merge. Part of loops.h.
#pragma once

#include "loops_masks.h"

namespace fastmerge::cpu {
namespace {

// Whether the elements are kept that load_pair puts first and second.
template <class T>
FASTMERGE_INLINE M first_kept(const std::uint16_t* mask) {
#if FASTMERGE_VECTOR_BYTES == 64
  if (sizeof(T) == 2) return {_mm512_test_epi32_mask(load_as<__m512i>(mask), _mm512_set1_epi32(0xFFFF))};
  return {_mm256_movepi16_mask(load_as<__m256i>(mask))};
#else
  return sizeof(T) == 2 ? load_as<S>(mask) << 16 >> 16 : load_signed_halves(mask);
#endif
}

template <class T>
FASTMERGE_INLINE M second_kept(const std::uint16_t* mask) {
#if FASTMERGE_VECTOR_BYTES == 64
  if (sizeof(T) == 2) return {_mm512_movepi32_mask(load_as<__m512i>(mask))};
  return {_mm256_movepi16_mask(load_as<__m256i>(mask + kWidth))};
#else
  return sizeof(T) == 2 ? load_as<S>(mask) >> 16 : load_signed_halves(mask + kWidth);
#endif
}

// What differs from one segment of a range to the next: the thresholds change at break indices.
struct Segment {
  std::vector<std::int32_t> inside, outside;
  std::vector<const std::uint16_t*> masks;
};

// n is a number of whole pairs; kCount 0 takes the count at run time.
template <class T, int kCount, int kVote, bool kMasked>
void merge_uniform(T* out, const T* base, const T* const* tensors, const MergeJob& job, const Segment& segment,
                   std::size_t n) {
  constexpr int kArrays = kCount ? kCount : 1;
  const int count = kCount ? kCount : static_cast<int>(job.factors.size());
  MergeScalars s{job.factors.data(), job.weights.data(), job.scale, job.divisor, job.divides, nullptr};
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
    const auto part = [&](F delta, int k, M mask) {
      return Part<F, M>{delta, kMasked ? mask : above(magnitude_bits(delta), S{} + thresholds[k])};
    };
    const F first = sparse_merge_element<kVote>(b.first, count, s, [&](int k) {
      return part(load_pair(tensors[k] + i).first - b.first, k, kMasked ? first_kept<T>(masks[k] + i) : M{});
    });
    const F second = sparse_merge_element<kVote>(b.second, count, s, [&](int k) {
      return part(load_pair(tensors[k] + i).second - b.second, k, kMasked ? second_kept<T>(masks[k] + i) : M{});
    });
    store_pair(out + i, first, second);
  }
}

template <class T, int kVote, bool kMasked>
void merge_counted(T* out, const T* base, const T* const* tensors, const MergeJob& job, const Segment& segment,
                   std::size_t n) {
  with_count<8>(job.factors.size(), [&](auto constant) {
    merge_uniform<T, decltype(constant)::value, kVote, kMasked>(out, base, tensors, job, segment, n);
  });
}

template <class T, bool kMasked>
void merge_voted(T* out, const T* base, const T* const* tensors, const MergeJob& job, const Segment& segment,
                 std::size_t n) {
  switch (job.vote) {
    case kVoteNone:
      return merge_counted<T, kVoteNone, kMasked>(out, base, tensors, job, segment, n);
    case kVoteWeighted:
      return merge_counted<T, kVoteWeighted, kMasked>(out, base, tensors, job, segment, n);
    case kVoteSum:
      return merge_uniform<T, 0, kVoteSum, kMasked>(out, base, tensors, job, segment, n);
    default:
      return merge_uniform<T, 0, kVoteCount, kMasked>(out, base, tensors, job, segment, n);
  }
}

// One call's state on one thread.
class Merger {
 public:
  explicit Merger(const MergeJob& job)
      : out_(job.out), inputs_(job.inputs), job_(job), dtype_(shared_dtype(job.inputs, job.out)) {
    for (const Keep& keep : job.keeps) {
      const bool top = keep.rule == kRuleBand && keep.c > kLargestBits;
      masked_ |= keep.rule != kRuleAll && !top;
    }
    const std::size_t count = job.keeps.size();
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
      for (const Keep& keep : job_.keeps) {
        if (keep.rule != kRuleBand) continue;
        for (const std::int64_t index : {keep.b, keep.d}) stop = first_break(index, at, stop);
      }
      set_thresholds(job_.offset + at);
      at = segment(at, stop);
    }
  }

 private:
  std::size_t first_break(std::int64_t index, std::size_t at, std::size_t stop) const {
    const auto global = static_cast<std::uint64_t>(index);
    return global > job_.offset + at && global < job_.offset + stop ? global - job_.offset : stop;
  }

  void set_thresholds(std::uint64_t index) {
    for (std::size_t k = 0; k < job_.keeps.size(); ++k) {
      const Keep& keep = job_.keeps[k];
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
    for (const Array& tensor : inputs_.tensors) tensors.push_back(static_cast<const T*>(tensor.data) + at);
    merge(static_cast<T*>(out_.data) + at, static_cast<const T*>(inputs_.base.data) + at, tensors.data(), at, n);
    return at + n;
  }

  // Mixed dtypes, float16, and the elements beyond the last whole pair: by tiles of float32.
  std::size_t tile(std::size_t at, std::size_t n) {
    const std::size_t count = inputs_.tensors.size();
    tiles_.resize((count + 1) * kTile);
    std::vector<const float*> tensors;
    for (std::size_t k = 0; k < count; ++k) {
      tensors.push_back(tiles_.data() + k * kTile);
      widen(tiles_.data() + k * kTile, inputs_.tensors[k], at, n);
    }
    float* base = tiles_.data() + count * kTile;
    widen(base, inputs_.base, at, n);
    merge(base, base, tensors.data(), at, padded(n));
    narrow(out_, at, base, n);
    return at + n;
  }

  template <class T>
  void merge(T* out, const T* base, const T* const* tensors, std::size_t at, std::size_t n) {
    if (!masked_) return merge_voted<T, false>(out, base, tensors, job_, segment_, n);
    for (std::size_t k = 0; k < job_.keeps.size(); ++k) {
      std::uint16_t* mask = mask_storage_.data() + k * kMaskSize;
      segment_.masks[k] = mask;
      if (job_.keeps[k].row != 0) {
        segment_.masks[k] = strided_mask(mask, job_.keeps[k], job_.offset + at, n);
      } else if (job_.keeps[k].rule == kRuleRandom) {
        segment_.masks[k] = random_mask(mask, job_.keeps[k], job_.offset + at, n);
      } else if (job_.keeps[k].rule == kRuleMask) {
        segment_.masks[k] = stored_mask(mask, job_.keeps[k], job_.offset + at, n);
      } else {
        band_mask(mask, tensors[k], base, segment_.inside[k], segment_.outside[k], n);
      }
    }
    merge_voted<T, true>(out, base, tensors, job_, segment_, n);
  }

  Output out_;
  const Tensors& inputs_;
  const MergeJob& job_;
  int dtype_;
  bool masked_ = false;
  Segment segment_;
  std::vector<std::uint16_t> mask_storage_;
  std::vector<float> tiles_;
};

void sparse_merge(const MergeJob& job, std::size_t begin, std::size_t end) { Merger(job).run(begin, end); }

}  // namespace
}  // namespace fastmerge::cpu
