// Keep rules as masks. Part of loops.h.
#pragma once

#include "loops_input.h"

namespace fastmerge::cpu {
namespace {

// Elements of a tile of masks or float32 values: small enough that those of eight models stay in the second-level
// cache.
constexpr std::size_t kTile = 1024;
// A random mask starts at a multiple of 8 elements and is made in twice 8 elements per 64-bit lane; a stored one starts
// and ends at a multiple of 32.
constexpr std::size_t kMaskSize = kTile + 32 + 16 * kDoubles;

// Masks hold 0xFFFF for a kept element, 0 for a dropped one.
// The 16-bit random numbers of stream 0, for groups of 8 elements per 64-bit lane.
class HalfWords {
 public:
  static constexpr int kElements = 8 * kDoubles;

  HalfWords(std::uint64_t key, std::uint32_t model) : model_(model) {
    // Even lanes take the first half of the blocks of a group, odd lanes the second, so that joining the words of a
    // block also puts the blocks in order.
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
  const auto drop = static_cast<std::uint32_t>(keep.c), drop_high = static_cast<std::uint32_t>(keep.c >> 16);
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
    if ((drop & 0xFFFFu) == 0) continue;
    S undecided{};
    for (int j = 0; j < 4; ++j) undecided |= (S)(halves[j] == high);
    if (mask_bits(undecided != 0) == 0) continue;
    std::uint16_t stored[kStep];
    std::memcpy(stored, halves, sizeof stored);
    for (int i = 0; i < kStep; ++i) {
      if (stored[i] == drop_high && !keeps_element(stored[i], drop, key, model, (block << 3) + i)) mask[i] = 0;
    }
  }
  return result;
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
