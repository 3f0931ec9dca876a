// Keep rules as masks: 0xFFFF for a kept element, 0 for a dropped one. Part of loops.h.
#pragma once

#include "loops_input.h"

namespace fastmerge::cpu {
namespace {

// Elements of a tile of masks or float32 values: small enough that those of eight models stay in the second-level
// cache.
constexpr std::size_t kTile = 1024;
// A random mask starts at a multiple of 8 elements and is made in steps of HalfWords::kStep; a stored one starts
// and ends at a multiple of 32.
constexpr std::size_t kMaskSize = kTile + 32 + 32 * kDoubles;

// The 16-bit random numbers of stream 0, for groups of 8 elements per 64-bit lane.
class HalfWords {
 public:
  // Groups that are made side by side, since each waits for its own products; as many as there are registers for.
  static constexpr int kGroups = kBytes == 64 ? 4 : 2;
  static constexpr int kStep = kGroups * 8 * kDoubles;  // elements

  explicit HalfWords(std::uint64_t key) : key_(key) {
    // Even lanes take the first half of the blocks of a group, odd lanes the second, so that joining the words of a
    // block also puts the blocks in order.
    for (int i = 0; i < kDoubles; ++i) lane_[i] = i / 2 + i % 2 * (kDoubles / 2);
    for (std::uint32_t round = 0; round < kPhiloxRounds; ++round) {
      keys_[round][0] = U64{} + static_cast<std::uint32_t>(key + kWeyl0 * round);
      keys_[round][1] = U64{} + static_cast<std::uint32_t>((key >> 32) + kWeyl1 * round);
    }
  }

  HalfWords(std::uint64_t key, std::uint32_t model) : HalfWords(key) { choose(model); }

  // Goes on with the numbers of a model.
  void choose(std::uint32_t model) {
    model_ = model;
    const std::uint32_t key0 = static_cast<std::uint32_t>(key_);
    const std::uint64_t of_model = LowHalves<std::uint64_t>::multiply(model, kPhilox1);
    const std::uint64_t of_key = LowHalves<std::uint64_t>::multiply(of_model >> 32 ^ key0, kPhilox0);
    early_[0] = keys_[1][0] ^ of_model;
    early_[1] = keys_[1][1] ^ of_key >> 32;
    early_[2] = U64{} + of_key;
  }

  // Calls f(block, halves) for kGroups groups at a time, in the order of their elements, from a block on up to `last`,
  // and between() in every round of theirs: work that waits for other things.
  template <class Function, class Between>
  FASTMERGE_INLINE_MEMBER void each(std::uint64_t block, std::uint64_t last, Function f, Between between) const {
    (last + kGroups * kDoubles) >> 32 ? each_from<0>(block, last, f, between)
                                      : each_from<kEarly>(block, last, f, between);
  }

  template <class Function>
  FASTMERGE_INLINE_MEMBER void each(std::uint64_t block, std::uint64_t last, Function f) const {
    each(block, last, f, Nothing{});
  }

 private:
  struct Nothing {
    void operator()() const {}
  };

  // Of the counters of blocks below 2^32 three words are the same, and so is half of what the first two rounds make.
  static constexpr int kEarly = 2;

  template <int kRound, class Function, class Between>
  FASTMERGE_INLINE_MEMBER void each_from(std::uint64_t block, std::uint64_t last, Function f, Between between) const {
    for (; block < last; block += kGroups * kDoubles) {
      U64 words[kGroups][4];
      for (int group = 0; group < kGroups; ++group) start<kRound>(words[group], block + group * kDoubles);
      const auto philox = [&](int round) {
        for (U64(&word)[4] : words) philox_round<U64>(word, keys_[round][0], keys_[round][1]);
      };
      if constexpr (std::is_same_v<Between, Nothing>) {
        for (int round = kRound; round < kPhiloxRounds; ++round) philox(round);
      } else {
        // Unrolled, it would keep the keys in registers and the words in memory.
#pragma GCC unroll 1
        for (int round = kRound; round < kPhiloxRounds; ++round) {
          philox(round);
          between();
        }
      }
      H halves[2 * kGroups];
      for (int group = 0; group < kGroups; ++group) join(words[group], halves[2 * group], halves[2 * group + 1]);
      f(block, halves);
    }
  }

  template <int kRound>
  FASTMERGE_INLINE_MEMBER void start(U64 (&counter)[4], std::uint64_t block) const {
    counter[0] = lane_ + block;
    if constexpr (kRound == 0) {
      counter[1] = counter[0] >> 32;
      counter[2] = U64{} + model_;
      counter[3] = U64{};
    } else {
      const U64 product0 = LowHalves<U64>::multiply(counter[0], kPhilox0);
      const U64 product1 = LowHalves<U64>::multiply((product0 >> 32) ^ keys_[0][1], kPhilox1);
      counter[0] = (product1 >> 32) ^ early_[0];
      counter[1] = product1;
      counter[2] = product0 ^ early_[1];
      counter[3] = early_[2];
    }
  }

  FASTMERGE_INLINE_MEMBER static void join(const U64 (&words)[4], H& first, H& second) {
    const U64 left = (words[0] & 0xFFFFFFFFu) | (words[1] << 32), right = (words[2] & 0xFFFFFFFFu) | (words[3] << 32);
    first = (H)first_words(left, right);
    second = (H)second_words(left, right);
  }

  U64 lane_, keys_[kPhiloxRounds][2], early_[3];
  std::uint64_t key_, model_ = 0;
};

// Fills the mask of the elements index .. index + n - 1 (n <= kTile) and returns its first element.
const std::uint16_t* random_mask(std::uint16_t* mask, const Keep& keep, std::uint64_t index, std::size_t n) {
  const auto key = static_cast<std::uint64_t>(keep.a);
  const auto model = static_cast<std::uint32_t>(keep.b);
  const auto drop = static_cast<std::uint32_t>(keep.c), drop_high = static_cast<std::uint32_t>(keep.c >> 16);
  const std::uint16_t* const result = mask + (index & 7);
  if (drop_high > 0xFFFFu) {
    std::memset(mask, 0, (n + 8) * sizeof *mask);
    return result;
  }
  const HalfWords words(key, model);
  const H high = H{} + static_cast<std::uint16_t>(drop_high);
  const std::uint64_t last = (index + n + 7) >> 3;
  words.each(index >> 3, last, [&](std::uint64_t block, const H(&halves)[2 * HalfWords::kGroups]) {
    std::uint16_t* const out = mask;
    mask += HalfWords::kStep;
    for (int j = 0; j < 2 * HalfWords::kGroups; ++j) store_as(out + 2 * kWidth * j, halves[j] >= high);
    if ((drop & 0xFFFFu) == 0) return;
    S undecided{};
    for (const H& half : halves) undecided |= (S)(half == high);
    if (mask_bits(undecided != 0) == 0) return;
    std::uint16_t stored[HalfWords::kStep];
    std::memcpy(stored, halves, sizeof stored);
    for (int i = 0; i < HalfWords::kStep; ++i) {
      if (stored[i] == drop_high && !keeps_element(stored[i], drop, key, model, (block << 3) + i)) out[i] = 0;
    }
  });
  return result;
}

// The same of a strided part, of which element `at` is the first: row by row.
const std::uint16_t* strided_mask(std::uint16_t* mask, const Keep& keep, std::uint64_t at, std::size_t n) {
  const auto row = static_cast<std::uint64_t>(keep.row);
  std::uint64_t within = at % row, index = keep.d + at / row * keep.stride;
  std::uint16_t drawn[kMaskSize];
  for (std::size_t done = 0; done < n; within = 0, index += keep.stride) {
    const std::size_t count = std::min<std::uint64_t>(n - done, row - within);
    std::copy_n(random_mask(drawn, keep, index + within, count), count, mask + done);
    done += count;
  }
  return mask;
}

// The same from the bits of the whole tensor, of which no word beyond those elements is read.
const std::uint16_t* stored_mask(std::uint16_t* mask, const Keep& keep, std::uint64_t index, std::size_t n) {
  const auto* const words = reinterpret_cast<const std::uint32_t*>(keep.a);
  const std::uint16_t* const result = mask + (index & 31);
  for (std::uint64_t word = index >> 5; word < (index + n + 31) >> 5; ++word, mask += 32) store_bits(mask, words[word]);
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

}  // namespace
}  // namespace fastmerge::cpu
