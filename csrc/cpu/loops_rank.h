// Masks by rank, row by row: kernels/rank_mask.py. Part of loops.h.
#pragma once

#include "loops_ranker.h"

namespace fastmerge::cpu {
namespace {

// The high halves of the random words of the elements index .. index + n - 1; returns the first. `out` holds n + 8
// elements and twice HalfWords::kElements.
const std::uint16_t* random_halves(std::uint16_t* out, const HalfWords& words, std::uint64_t index, std::size_t n) {
  const std::uint16_t* const result = out + (index & 7);
  words.each(index >> 3, (index + n + 7) >> 3, [&](std::uint64_t, const H(&halves)[4]) {
    for (const H& half : halves) {
      store_as(out, half);
      out += 2 * kWidth;
    }
  });
  return result;
}

// Sets bits of a mask that other threads also write to.
void set_bits(std::uint32_t* words, std::uint64_t index, std::uint32_t bits) {
  const int shift = static_cast<int>(index & 31);
  __atomic_fetch_or(words + (index >> 5), bits << shift, __ATOMIC_RELAXED);
  const std::uint32_t rest = shift ? bits >> (32 - shift) : 0;
  if (rest) __atomic_fetch_or(words + (index >> 5) + 1, rest, __ATOMIC_RELAXED);
}

void to_magnitudes(std::int32_t* keys, const float* deltas, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kWidth) store_as(keys + i, canonical_bits(magnitude_bits(load(deltas + i))));
}

void rank_rows(std::uint32_t* words, const RankRows& rows, std::size_t first_row, std::size_t last_row) {
  const std::size_t n = rows.length;
  Ranker ranker(rows);
  const HalfWords random(rows.key, rows.model);
  std::vector<float> values(n + kRowSlack);
  std::vector<std::int32_t> keys(n + kRowSlack);
  std::vector<std::uint16_t> storage(n + 8 + kRowSlack + 2 * HalfWords::kElements);
  std::vector<std::uint32_t> bits(n / 32 + 1);
  for (std::size_t row = first_row; row < last_row; ++row) {
    const std::size_t index = row * n;
    deltas(values.data(), rows.tensor, rows.base, index, index + n);
    to_magnitudes(keys.data(), values.data(), n);
    ranker.run(bits.data(), keys.data(), random_halves(storage.data(), random, index, n), index);
    for (std::size_t i = 0; i < n; i += 32) set_bits(words, index + i, bits[i / 32]);
  }
}

// Columns of tensors with inner > 1, kRankColumns at a time: unit u is block u % blocks of slab u / blocks.
void rank_columns(std::uint32_t* words, const RankRows& rows, std::size_t first_unit, std::size_t last_unit) {
  const std::size_t n = rows.length, blocks = (rows.inner + kRankColumns - 1) / kRankColumns, pitch = n + kRowSlack;
  Ranker ranker(rows);
  const HalfWords random(rows.key, rows.model);
  float values[kRankColumns + kPair];
  std::int32_t magnitudes[kRankColumns + kPair];
  std::uint16_t storage[kRankColumns + 8 + 2 * HalfWords::kElements];
  std::vector<std::int32_t> keys(kRankColumns * pitch);
  std::vector<std::uint16_t> halves(kRankColumns * pitch);
  std::vector<std::uint32_t> bits(kRankColumns * (n / 32 + 1));
  for (std::size_t unit = first_unit; unit < last_unit; ++unit) {
    const std::size_t column = unit % blocks * kRankColumns, start = unit / blocks * n * rows.inner + column;
    const std::size_t width = std::min(kRankColumns, rows.inner - column);
    for (std::size_t j = 0; j < n; ++j) {
      const std::size_t index = start + j * rows.inner;
      deltas(values, rows.tensor, rows.base, index, index + width);
      to_magnitudes(magnitudes, values, width);
      const std::uint16_t* const drawn = random_halves(storage, random, index, width);
      for (std::size_t c = 0; c < width; ++c) {
        keys[c * pitch + j] = magnitudes[c];
        halves[c * pitch + j] = drawn[c];
      }
    }
    for (std::size_t c = 0; c < width; ++c) {
      ranker.run(&bits[c * (n / 32 + 1)], &keys[c * pitch], &halves[c * pitch], start + c);
    }
    for (std::size_t j = 0; j < n; ++j) {
      std::uint32_t word = 0;
      for (std::size_t c = 0; c < width; ++c) word |= (bits[c * (n / 32 + 1) + j / 32] >> (j % 32) & 1u) << c;
      set_bits(words, start + j * rows.inner, word);
    }
  }
}

void rank_mask(std::uint32_t* words, const RankRows& rows, std::size_t begin, std::size_t end) {
  (rows.inner == 1 ? rank_rows : rank_columns)(words, rows, begin, end);
}

}  // namespace
}  // namespace fastmerge::cpu
