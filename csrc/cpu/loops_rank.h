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

// Sets the bits of n elements from an index on. Words that none but these have a part in are written.
void write_row(std::uint32_t* words, std::uint64_t index, const std::uint32_t* bits, std::size_t n) {
  const std::size_t whole = index % 32 == 0 ? n / 32 : 0;
  std::copy_n(bits, whole, words + (index >> 5));
  for (std::size_t i = whole * 32; i < n; i += 32) set_bits(words, index + i, bits[i / 32]);
}

// Writes the magnitudes of the deltas begin .. begin + n - 1, and zeros up to a whole vector; returns the largest.
std::int32_t row_keys(std::int32_t* keys, Array tensor, Array base, std::size_t begin, std::size_t n) {
  S top{};
  const auto add = [&](std::size_t i, F delta) {
    const S key = canonical_bits(magnitude_bits(delta));
    top = key > top ? key : top;
    store_as(keys + i, key);
  };
  std::size_t at = 0;
  if (base.data && base.dtype == tensor.dtype) {
    with_type(base.dtype, [&](auto* type) {
      const auto* const x = static_cast<decltype(type)>(tensor.data) + begin;
      const auto* const y = static_cast<decltype(type)>(base.data) + begin;
      for (; at + kWidth <= n; at += kWidth) {
        prefetch(x + at);
        prefetch(y + at);
        add(at, load(x + at) - load(y + at));
      }
    });
  }
  float tile[kTile];
  for (; at < n; at += kTile) {
    const std::size_t size = std::min(kTile, n - at);
    deltas(tile, tensor, base, begin + at, begin + at + size);
    for (std::size_t i = 0; i < size; i += kWidth) add(at + i, load(tile + i));
  }
  std::int32_t lanes[kWidth];
  store_as(lanes, top);
  return *std::max_element(lanes, lanes + kWidth);
}

void rank_rows(std::uint32_t* words, const RankRows& rows, std::size_t first_row, std::size_t last_row) {
  const std::size_t n = rows.length;
  Ranker ranker(rows);
  const HalfWords random(rows.key, rows.model);
  std::vector<std::int32_t> keys(n + kRowSlack);
  std::vector<std::uint16_t> storage(n + 8 + kRowSlack + 2 * HalfWords::kElements);
  std::vector<std::uint32_t> bits(n / 32 + 1);
  for (std::size_t row = first_row; row < last_row; ++row) {
    const std::size_t index = row * n;
    const std::int32_t top = row_keys(keys.data(), rows.tensor, rows.base, index, n);
    ranker.run(bits.data(), {keys.data(), top}, random_halves(storage.data(), random, index, n), index);
    write_row(words, index, bits.data(), n);
  }
}

// Columns of tensors with inner > 1, kRankColumns at a time: unit u is block u % blocks of slab u / blocks.
void rank_columns(std::uint32_t* words, const RankRows& rows, std::size_t first_unit, std::size_t last_unit) {
  const std::size_t n = rows.length, blocks = (rows.inner + kRankColumns - 1) / kRankColumns, pitch = n + kRowSlack;
  Ranker ranker(rows);
  const HalfWords random(rows.key, rows.model);
  std::int32_t magnitudes[kRankColumns + kPair], tops[kRankColumns];
  std::uint16_t storage[kRankColumns + 8 + 2 * HalfWords::kElements];
  std::vector<std::int32_t> keys(kRankColumns * pitch);
  std::vector<std::uint16_t> halves(kRankColumns * pitch);
  std::vector<std::uint32_t> bits(kRankColumns * (n / 32 + 1));
  for (std::size_t unit = first_unit; unit < last_unit; ++unit) {
    const std::size_t column = unit % blocks * kRankColumns, start = unit / blocks * n * rows.inner + column;
    const std::size_t width = std::min(kRankColumns, rows.inner - column);
    for (std::size_t j = 0; j < n; ++j) {
      const std::size_t index = start + j * rows.inner;
      row_keys(magnitudes, rows.tensor, rows.base, index, width);
      const std::uint16_t* const drawn = random_halves(storage, random, index, width);
      for (std::size_t c = 0; c < width; ++c) {
        keys[c * pitch + j] = magnitudes[c];
        tops[c] = j == 0 ? magnitudes[c] : std::max(tops[c], magnitudes[c]);
        halves[c * pitch + j] = drawn[c];
      }
    }
    for (std::size_t c = 0; c < width; ++c) {
      ranker.run(&bits[c * (n / 32 + 1)], {&keys[c * pitch], tops[c]}, &halves[c * pitch], start + c);
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
