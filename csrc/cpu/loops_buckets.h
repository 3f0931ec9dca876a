// The magnitudes of a row in buckets, and ranks within these. Part of loops.h.
//
// In a bucket the "even" elements, whose magnitude is the least that the bucket takes, come first, in the order of
// their positions: to rank one it suffices to count the bucket's elements before it. The "odd" ones are listed, and
// ranked by counting where few ask for it, else by a radix sort.
#pragma once

#include "loops_masks.h"
#include "loops_ranks.h"

namespace fastmerge::cpu {
namespace {

// Elements beyond a row that are read.
constexpr std::size_t kRowSlack = 64;

// The magnitudes of a row, readable for kRowSlack more elements.
struct RowKeys {
  const std::int32_t* keys;
  std::int32_t top;  // the largest
};

class Buckets {
 public:
  explicit Buckets(const RankRows& rows)
      : first_(static_cast<float>(rows.first) * 0x1p-16f),
        slope_(static_cast<float>(rows.step) * 0x1p-47f),
        n_(rows.length),
        part_((n_ + kParts - 1) / kParts),
        octaves_(n_ < 2048 ? 6 : 8),
        ids_(n_ + kRowSlack),
        odd_ids_(n_ + kRowSlack),
        odd_positions_(n_ + kRowSlack),
        members_(n_ + kRowSlack),
        values_(n_ + kRowSlack) {
    const auto buckets = [&] { return static_cast<std::size_t>(octaves_) << bits_; };
    while (bits_ < kSameBits ? buckets() < n_ : bits_ < kMostBits && buckets() * 8 <= n_) ++bits_;
    while (buckets() >> shift_ > kClasses) ++shift_;
    most_ = buckets() + 2 + kWidth;
    starts_.resize(most_);
    counts_.resize(kParts * most_);
    odd_counts_.resize(most_);
    ends_.resize(most_);
  }

  void fill(const RowKeys& row) {
    keys_ = row.keys;
    sort_into_buckets(row);
    count();
    bound();
    all_listed_ = false;
  }

  // Of every element.
  const std::uint16_t* ids() const { return ids_.data(); }
  // Classes of so many buckets, as many as a shuffle looks up. Per class, bounds of the high halves of its largest drop
  // threshold, in the high half, and of its least.
  static constexpr std::size_t kClasses = 2 * kWidth;
  int class_shift() const { return shift_; }
  const std::uint32_t* edges() const { return edges_; }

  // The least and the largest rank of an element's bucket.
  std::pair<std::uint32_t, std::uint32_t> ranks(std::uint32_t position) const {
    const std::size_t bucket = ids_[position];
    return {starts_[bucket], starts_[bucket + 1] - 1};
  }

  bool is_odd(std::uint32_t position) const {
    return ids_[position] == clipped_ || static_cast<std::uint32_t>(keys_[position]) << (9 + bits_) != 0;
  }

  // The least and the largest rank that an even element may have. Without branches: they would go either way.
  std::pair<std::uint32_t, std::uint32_t> even_ranks(std::uint32_t position) const {
    const std::size_t bucket = ids_[position], part = part_of(position);
    const std::uint32_t before = counted_in_parts(part, bucket);
    const std::uint32_t odd = many_ ? before : std::min(before, odd_counts_[bucket]);
    const std::uint32_t least = starts_[bucket] + before;
    return {least - odd, least + counts_[part * most_ + bucket] - 1};
  }

  // To be called before even_rank. `asked`: how often that will be.
  void expect_even(std::size_t asked) {
    counted_ = asked > kFewEven;
    if (!counted_) return;
    before_.resize(n_);
    std::vector<std::uint32_t> counts(buckets_);
    for (std::size_t i = 0; i < n_; ++i) before_[i] = counts[ids_[i]]++;
  }

  std::uint32_t even_rank(std::uint32_t position) const {
    const std::uint32_t bucket = ids_[position];
    const std::uint32_t before = counted_ ? before_[position] : counted_before(position, bucket);
    return starts_[bucket] + before - odd_before(position, bucket);
  }

  // To be called before odd_ranks. `asked`: of how many elements it will ask.
  void expect_odd(std::size_t asked) {
    all_listed_ = asked > kFew;
    if (!all_listed_) return;
    std::fill_n(ends_.begin(), buckets_, 0);
    for (std::size_t i = 0; i < odds_; ++i) ++ends_[odd_ids_[i]];
    std::uint32_t end = 0;
    for (std::size_t b = 0; b < buckets_; ++b) {
      end += ends_[b];
      ends_[b] = end - ends_[b];
    }
    sorted_.resize(odds_);
    for (std::size_t i = 0; i < odds_; ++i) sorted_[ends_[odd_ids_[i]]++] = odd_positions_[i];
  }

  // Calls f(position, rank) for odd elements of one bucket.
  template <class Function>
  void odd_ranks(const std::uint32_t* begin, const std::uint32_t* end, Function f) {
    const std::size_t bucket = ids_[*begin], odds = list(static_cast<std::uint32_t>(bucket));
    const std::uint32_t evens = counted_in_parts(kParts, bucket) - static_cast<std::uint32_t>(odds);
    const bool few = static_cast<std::size_t>(end - begin) <= kFew;
    if (!few) sort_ranks(order_, values_.data(), odds);
    for (; begin < end; ++begin) {
      const auto at =
          static_cast<std::size_t>(std::lower_bound(members_.data(), members_.data() + odds, *begin) - members_.data());
      const std::uint32_t within = few ? rank_among(values_.data(), odds, at) : order_[at];
      f(*begin, starts_[bucket] + evens + within);
    }
  }

 private:
  // Differences of close bfloat16 have so many bits below the leading one: nearly all are even.
  static constexpr int kSameBits = 7;
  static constexpr int kMostBits = 11;
  // Parts of a row that are counted side by side: equal magnitudes follow each other, and each waits for the last one's
  // count. They also narrow the ranks of equal magnitudes.
  static constexpr std::size_t kParts = 4;
  // Up to that many odd elements are found or ranked by passes over all, and even ones by counting in their part.
  static constexpr std::size_t kFew = 32, kFewEven = 256;
  // No position and no bucket.
  static constexpr std::uint32_t kNone = 0x7FFFFFFF;

  // Bucket 0 holds the zeros, bucket 1 also what lies more octaves below the largest than buckets cover; then all of
  // its elements are odd. Lists the odd elements.
  void sort_into_buckets(const RowKeys& row) {
    const int shift = 23 - bits_;
    const std::int32_t bottom = std::max(0, (row.top >> shift) - (octaves_ << bits_) + 3);
    buckets_ = static_cast<std::size_t>((row.top >> shift) - bottom) + 2;
    clipped_ = bottom > 0 ? 1 : -1;
    const std::int32_t clipped = clipped_;
    U position = kLaneNumbers;
    std::uint16_t* const ids = ids_.data();
    std::uint32_t* const odd_ids = odd_ids_.data();
    std::uint32_t* const odd_positions = odd_positions_.data();
    const std::size_t n = n_;
    std::size_t odds = 0;
    for (std::size_t i = 0; i < n; i += kWidth, position += kWidth) {
      const S key = load_as<S>(row.keys + i);
      const S above = (key >> shift) - (bottom - 1);
      const S id = (above > 1 ? above : S{} + 1) & (key != 0);
      store_halves(ids + i, id);
      // Not the zeros beyond the row.
      const unsigned odd = mask_bits(((key << (32 - shift)) != 0) | (id == clipped));
      store_selected(odd_ids + odds, (U)id, odd);
      odds += store_selected(odd_positions + odds, position, odd);
    }
    odds_ = odds;
    store_as(odd_ids + odds, U{} + kNone);
    store_as(odd_positions + odds, U{} + kNone);
    // Where they are many, so many as there are.
    many_ = odds > n_ / 8;
    if (many_) return;
    std::fill_n(odd_counts_.data(), buckets_, 0);
    for (std::size_t i = 0; i < odds; ++i) ++odd_counts_[odd_ids[i]];
  }

  void count() {
    for (std::size_t c = 0; c < kParts; ++c) std::fill_n(counts_.data() + c * most_, buckets_ + kWidth, 0);
    const std::uint16_t* const ids = ids_.data();
    std::uint32_t* const counts = counts_.data();
    const std::size_t last = n_ - std::min(n_, (kParts - 1) * part_), part = part_, most = most_;
    for (std::size_t i = 0; i < last; ++i) {
      for (std::size_t c = 0; c < kParts; ++c) ++counts[c * most + ids[c * part + i]];
    }
    for (std::size_t c = 0; c + 1 < kParts; ++c) {
      for (std::size_t i = c * part + last; i < std::min(n_, (c + 1) * part); ++i) ++counts[c * most + ids[i]];
    }
  }

  // The rank that every bucket starts at, and what follows for classes: in float32, with room for rounding.
  void bound() {
    const std::uint32_t* const counts = counts_.data();
    std::uint32_t* const starts = starts_.data();
    std::int32_t rank = 0;
    for (std::size_t b = 0; b <= buckets_; b += kWidth) {
      S found{};
      for (std::size_t c = 0; c < kParts; ++c) found += load_as<S>(counts + c * most_ + b);
      store_as(starts + b, running_sums(found) + rank - found);
      rank += sum_of_lanes(found);
    }
    std::uint32_t ranks[kClasses + kWidth];
    for (std::size_t c = 0; c <= kClasses; ++c) ranks[c] = starts[std::min(c << shift_, buckets_)];
    const auto threshold = [&](const std::uint32_t* at) {
      return splat<F>(first_) - __builtin_convertvector(load_as<S>(at), F) * splat<F>(slope_);
    };
    for (std::size_t c = 0; c < kClasses; c += kWidth) {
      const S high = __builtin_convertvector(threshold(ranks + c) + splat<F>(0.0625f), S);
      const S low = __builtin_convertvector(threshold(ranks + c + 1) - splat<F>(0.0625f), S);
      store_as(edges_ + c, (high < 0xFFFF ? high : S{} + 0xFFFF) << 16 | (low > 0 ? low : S{}));
    }
  }

  std::size_t part_of(std::uint32_t position) const {
    std::size_t part = 0;
    for (std::size_t c = 1; c < kParts; ++c) part += position >= c * part_;
    return part;
  }

  std::uint32_t counted_in_parts(std::size_t parts, std::size_t bucket) const {
    std::uint32_t found = 0;
    for (std::size_t c = 0; c < kParts; ++c) found += c < parts ? counts_[c * most_ + bucket] : 0;
    return found;
  }

  // How many elements of a bucket come before a position.
  std::uint32_t counted_before(std::uint32_t position, std::size_t bucket) const {
    const std::size_t part = part_of(position);
    const std::uint16_t* const ids = ids_.data();
    const H wanted = H{} + static_cast<std::uint16_t>(bucket);
    std::uint32_t found = counted_in_parts(part, bucket);
    std::size_t i = part * part_;
    constexpr std::size_t kStep = 2 * kWidth;
    for (; i + kStep < position; i += kStep) found += count_halves(load_as<H>(ids + i) == wanted, kStep);
    return found + count_halves(load_as<H>(ids + i) == wanted, position - i);
  }

  std::uint32_t odd_before(std::uint32_t position, std::uint32_t bucket) const {
    if (!many_ && odd_counts_[bucket] == 0) return 0;
    const std::uint32_t* const ids = odd_ids_.data();
    const std::uint32_t* const positions = odd_positions_.data();
    S found{};
    for (std::size_t i = 0; i < odds_ && positions[i] < position; i += kWidth) {
      found += (load_as<U>(ids + i) == bucket) & (load_as<S>(positions + i) < static_cast<std::int32_t>(position));
    }
    return static_cast<std::uint32_t>(-sum_of_lanes(found));
  }

  // Lists the positions and the magnitudes of a bucket's odd elements; returns how many these are.
  std::size_t list(std::uint32_t bucket) {
    const std::uint32_t* const ids = odd_ids_.data();
    const std::uint32_t* const positions = odd_positions_.data();
    std::uint32_t* const members = members_.data();
    std::size_t found = 0;
    if (all_listed_) {
      const std::uint32_t begin = bucket == 0 ? 0 : ends_[bucket - 1];
      found = ends_[bucket] - begin;
      std::copy_n(sorted_.data() + begin, found, members);
    }
    for (std::size_t i = 0; !all_listed_ && i < odds_; i += kWidth) {
      const unsigned bits = mask_bits((S)(load_as<U>(ids + i) == bucket));
      if (bits) found += store_selected(members + found, load_as<U>(positions + i), bits);
    }
    for (std::size_t i = 0; i < found; ++i) values_[i] = keys_[members[i]];
    return found;
  }

  const float first_, slope_;
  const std::int32_t* keys_ = nullptr;
  std::size_t n_, part_;
  int octaves_, bits_ = 2, shift_ = 0;
  std::size_t most_ = 0, buckets_ = 0, odds_ = 0;
  std::int32_t clipped_ = -1;
  // Whether odd_counts_ has no counts, before_ and sorted_ hold what they may.
  bool many_ = false, counted_ = false, all_listed_ = false;
  std::vector<std::uint16_t> ids_;
  std::vector<std::uint32_t> before_, odd_ids_, odd_positions_, sorted_, members_;
  std::vector<std::int32_t> values_;
  std::uint32_t edges_[kClasses];
  std::vector<std::uint32_t> starts_, counts_, odd_counts_, ends_, order_;
};

}  // namespace
}  // namespace fastmerge::cpu
