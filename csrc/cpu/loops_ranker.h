// The mask of one row by rank. Part of loops.h; contract: kernels/rank_mask.py.
//
// Few elements need their rank. A histogram of a row's magnitudes bounds the ranks of a bucket, hence the drop
// thresholds in it; the random number of an element mostly lies outside of these bounds. What is left undecided is
// ranked in its bucket: by counting where a bucket has few such elements, else by a radix sort of the bucket.
#pragma once

#include "loops_masks.h"

namespace fastmerge::cpu {
namespace {

// Elements beyond a row that are read.
constexpr std::size_t kRowSlack = 32;

// The masks of rows of one length, one row at a time.
class Ranker {
 public:
  explicit Ranker(const RankRows& rows)
      : rows_(rows), n_(rows.length), quarter_((n_ + kChains - 1) / kChains), ids_(n_ + kRowSlack), undecided_(n_ + 1) {
    // Four to eight elements of a row per bucket.
    while (bits_ < 10 && (std::size_t{kOctaves} << bits_) * 8 <= n_) ++bits_;
    edges_.resize((std::size_t{kOctaves} << bits_) + 1);
    starts_.resize(edges_.size() + 1);
    counts_.resize(kChains * edges_.size());
  }

  // Writes the bits of a row. keys: magnitudes; halves: of the random words; both readable for kRowSlack more elements,
  // of which the keys are zeros up to a whole vector. Element j has the global index index + j * rows.inner.
  void run(std::uint32_t* bits, const std::int32_t* keys, const std::uint16_t* halves, std::uint64_t index) {
    count(keys);
    bound();
    const std::size_t undecided = decide(bits, halves);
    if (undecided == 0) return;
    rank(keys, undecided);
    for (std::size_t u = 0; u < undecided; ++u) {
      const Element e = undecided_[u];
      const std::uint32_t drop = rank_threshold(rows_.first, rows_.step, e.rank);
      const bool kept =
          keeps_element(halves[e.position], drop, rows_.key, rows_.model, index + e.position * rows_.inner);
      bits[e.position / 32] |= std::uint32_t{kept} << (e.position % 32);
    }
  }

 private:
  // Buckets cover that many octaves below the largest magnitude; the first one also holds what is smaller.
  static constexpr int kOctaves = 16;
  // Parts of a row that are counted side by side: equal magnitudes follow each other, and each waits for the last one's
  // count.
  static constexpr std::size_t kChains = 4;
  // Up to that many elements of a row are ranked by a pass over the row, of a bucket by one over the bucket.
  static constexpr std::size_t kFew = 12, kFewOfBucket = 32;
  // What is known of a bucket with more: that its magnitudes are equal, or that ranks_ holds the ranks in it.
  static constexpr std::uint32_t kEqual = 0xFFFFFFFFu, kRanked = 0xFFFFFFFEu;

  struct Element {
    std::uint32_t position, rank;
  };

  // Calls f(chain, position) for all elements; positions rise within a chain.
  template <class Function>
  FASTMERGE_INLINE_MEMBER void each(Function f) const {
    const std::size_t last = n_ - std::min(n_, (kChains - 1) * quarter_);
    for (std::size_t i = 0; i < last; ++i) {
      for (std::size_t c = 0; c < kChains; ++c) f(c, c * quarter_ + i);
    }
    for (std::size_t c = 0; c + 1 < kChains; ++c) {
      for (std::size_t i = c * quarter_ + last; i < std::min(n_, (c + 1) * quarter_); ++i) f(c, i);
    }
  }

  void count(const std::int32_t* keys) {
    S largest{};
    for (std::size_t i = 0; i < n_; i += kWidth) {
      const S x = load_as<S>(keys + i);
      largest = x > largest ? x : largest;
    }
    std::int32_t top = 0;
    for (int lane = 0; lane < kWidth; ++lane) top = std::max<std::int32_t>(top, largest[lane]);
    const std::int32_t bottom = std::max(0, top - (kOctaves << 23));
    const int shift = 23 - bits_;
    buckets_ = static_cast<std::size_t>((top - bottom) >> shift) + 1;
    for (std::size_t i = 0; i < n_; i += kWidth) {
      const S above = load_as<S>(keys + i) - bottom;
      store_halves(ids_.data() + i, (above > 0 ? above : S{}) >> shift);
    }
    std::fill_n(counts_.begin(), kChains * buckets_, 0);
    const std::uint16_t* const ids = ids_.data();
    std::uint32_t* const counts = counts_.data();
    const std::size_t buckets = buckets_;
    each([=](std::size_t chain, std::size_t i) { ++counts[chain * buckets + ids[i]]; });
  }

  // Per bucket, the high halves of its largest and least drop thresholds. Makes of the counts the places where each
  // chain puts its elements of a bucket in a stable sort by bucket.
  void bound() {
    std::uint32_t rank = 0;
    for (std::size_t b = 0; b < buckets_; ++b) {
      const std::uint32_t start = rank;
      starts_[b] = start;
      for (std::size_t c = 0; c < kChains; ++c) {
        const std::uint32_t found = counts_[c * buckets_ + b];
        counts_[c * buckets_ + b] = rank;
        rank += found;
      }
      // Of an empty bucket it does not matter.
      edges_[b] = (rank_threshold(rows_.first, rows_.step, start) & 0xFFFF0000u) |
                  rank_threshold(rows_.first, rows_.step, rank - 1) >> 16;
    }
  }

  // Writes the bits of what the bounds decide, lists the rest, and returns how many these are.
  std::size_t decide(std::uint32_t* bits, const std::uint16_t* halves) {
    const std::uint16_t* const ids = ids_.data();
    const std::uint32_t* const edges = edges_.data();
    Element* next = undecided_.data();
    for (std::size_t i = 0; i < n_; i += 32) {
      std::uint32_t kept = 0, open = 0;
      for (int j = 0; j < 32; j += kWidth) {
        const U edge = gather(edges, load_halves(ids + i + j));
        const S half = (S)load_halves(halves + i + j);
        kept |= mask_bits(half > (S)(edge >> 16)) << j;
        open |= mask_bits(half >= (S)(edge & 0xFFFFu)) << j;
      }
      const std::uint32_t valid = n_ - i < 32 ? (1u << (n_ - i)) - 1 : ~0u;
      bits[i / 32] = kept & valid;
      for (open &= ~kept & valid; open; open &= open - 1) {
        (next++)->position = static_cast<std::uint32_t>(i) + static_cast<std::uint32_t>(__builtin_ctz(open));
      }
    }
    return static_cast<std::size_t>(next - undecided_.data());
  }

  // Sets the ranks of the undecided elements.
  void rank(const std::int32_t* keys, std::size_t undecided) {
    Element* const begin = undecided_.data();
    Element* const end = begin + undecided;
    if (undecided <= kFew) {
      for (Element* e = begin; e < end; ++e) e->rank = rank_among(keys, n_, e->position);
      return;
    }
    sorted_.resize(n_);
    places_.resize(n_);
    const std::uint16_t* const ids = ids_.data();
    std::uint32_t* const counts = counts_.data();
    std::int32_t* const sorted = sorted_.data();
    std::uint32_t* const places = places_.data();
    const std::size_t buckets = buckets_;
    each([=](std::size_t chain, std::size_t i) {
      const std::uint32_t place = counts[chain * buckets + ids[i]]++;
      places[i] = place;
      sorted[place] = keys[i];
    });
    std::fill_n(counts_.begin(), buckets_, 0);
    for (Element* e = begin; e < end; ++e) ++counts_[ids[e->position]];
    starts_[buckets_] = static_cast<std::uint32_t>(n_);
    for (Element* e = begin; e < end; ++e) {
      const std::size_t bucket = ids[e->position], start = starts_[bucket], size = starts_[bucket + 1] - start;
      const std::uint32_t place = places[e->position];
      std::uint32_t& known = counts_[bucket];
      if (known <= kFewOfBucket) {
        e->rank = static_cast<std::uint32_t>(start) + rank_among(sorted + start, size, place - start);
        continue;
      }
      if (known < kRanked) known = rank_bucket(start, size);
      e->rank = known == kEqual ? place : ranks_[place];
    }
  }

  // How many of n values are less than the one at `position`, or equal to it and before it.
  static std::uint32_t rank_among(const std::int32_t* values, std::size_t n, std::size_t position) {
    const std::int32_t value = values[position];
    S found{};
    std::size_t i = 0;
    for (; i + kWidth <= position; i += kWidth) found += load_as<S>(values + i) <= value;
    std::uint32_t rank = 0;
    for (; i < std::min(n, position + kWidth); ++i) rank += values[i] < value || (values[i] == value && i < position);
    for (; i + kWidth <= n; i += kWidth) found += load_as<S>(values + i) < value;
    for (; i < n; ++i) rank += values[i] < value;
    return rank + static_cast<std::uint32_t>(-sum_of_lanes(found));
  }

  // Ranks the magnitudes of a bucket, unless they are equal: a stable radix sort that skips digits which all share.
  std::uint32_t rank_bucket(std::size_t start, std::size_t size) {
    const std::int32_t* const values = sorted_.data() + start;
    std::uint32_t differing = 0;
    for (std::size_t i = 1; i < size; ++i) differing |= static_cast<std::uint32_t>(values[i] ^ values[0]);
    if (differing == 0) return kEqual;
    ranks_.resize(n_);
    order_.resize(2 * n_);
    std::uint32_t* order = order_.data();
    std::uint32_t* other = order + n_;
    for (std::size_t i = 0; i < size; ++i) order[i] = static_cast<std::uint32_t>(i);
    for (int shift = 0; shift < 32; shift += 8) {
      if ((differing >> shift & 0xFFu) == 0) continue;
      const auto digit = [=](std::size_t i) { return static_cast<std::uint32_t>(values[i]) >> shift & 0xFFu; };
      std::uint32_t places[256] = {};
      for (std::size_t i = 0; i < size; ++i) ++places[digit(i)];
      std::uint32_t before = 0;
      for (std::uint32_t& place : places) {
        before += place;
        place = before - place;
      }
      for (std::size_t i = 0; i < size; ++i) other[places[digit(order[i])]++] = order[i];
      std::swap(order, other);
    }
    for (std::size_t i = 0; i < size; ++i) ranks_[start + order[i]] = static_cast<std::uint32_t>(start + i);
    return kRanked;
  }

  const RankRows& rows_;
  std::size_t n_, quarter_;
  int bits_ = 2;
  std::size_t buckets_ = 0;
  std::vector<std::uint16_t> ids_;
  std::vector<Element> undecided_;
  std::vector<std::uint32_t> starts_, edges_, counts_, places_, ranks_, order_;
  std::vector<std::int32_t> sorted_;
};

}  // namespace
}  // namespace fastmerge::cpu
