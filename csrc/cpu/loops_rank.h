// Masks by rank, row by row: kernels/rank_mask.py. Part of loops.h.
#pragma once

#include "loops_ranker.h"

namespace fastmerge::cpu {
namespace {

// The high halves of the random words of the elements index .. index + n - 1; returns the first. `out` holds n + 8
// elements and a step more. Calls between() in every round, and then() after every step.
template <class Between, class Then>
FASTMERGE_INLINE const std::uint16_t* random_halves(std::uint16_t* out, const HalfWords& words, std::uint64_t index,
                                                    std::size_t n, Between between, Then then) {
  const std::uint16_t* const result = out + (index & 7);
  const auto step = [&](std::uint64_t, const H(&halves)[2 * HalfWords::kGroups]) {
    for (const H& half : halves) {
      store_as(out, half);
      out += kHalves;
    }
    then();
  };
  words.each(index >> 3, (index + n + 7) >> 3, step, between);
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

// Asks for n elements that are read a row later: in time, and not all at once.
__attribute__((noinline)) void fetch(Array array, std::size_t begin, std::size_t n) {
  if (!array.data) return;
  const std::size_t size = array.dtype == kFloat32 ? 4 : 2;
  const char* const data = static_cast<const char*>(array.data) + begin * size;
  for (std::size_t i = 0; i < n * size; i += 64) __builtin_prefetch(data + i, 0, 2);
}

// The random numbers of a row whose elements are counted meanwhile, and the next row of `next` elements asked for. Not
// inlined: among more values those of Philox would not stay in registers.
template <class Count>
__attribute__((noinline)) const std::uint16_t* draw_and_count(std::uint16_t* out, const HalfWords& random,
                                                              Ranker<Count>& ranker, const RankRows& rows,
                                                              std::size_t index, std::size_t next) {
  std::size_t fetched = 0;
  const auto then = [&] {
    ranker.count_on();
    const std::size_t size = std::min<std::size_t>(HalfWords::kStep, next - fetched);
    fetch(rows.tensor, index + rows.length + fetched, size);
    fetch(rows.base, index + rows.length + fetched, size);
    fetched += size;
  };
  return random_halves(out, random, index, rows.length, [&] { ranker.count_some(); }, then);
}

template <class Count>
void rank_rows(std::uint32_t* words, const RankRows& rows, std::size_t first_row, std::size_t last_row) {
  const std::size_t n = rows.length;
  Ranker<Count> ranker(rows);
  const HalfWords random(rows.key, rows.model);
  Lines<std::uint16_t> keys(n + kRowSlack);
  Lines<std::uint16_t> storage(n + 8 + kRowSlack + HalfWords::kStep);
  std::vector<std::uint32_t> bits(n / 32 + 2);
  for (std::size_t row = first_row; row < last_row; ++row) {
    const std::size_t index = row * n;
    const H tops = row_keys(keys.data(), H{}, rows.tensor, rows.base, index, n);
    ranker.begin(keys.data(), largest_lane(tops), large_lane(tops) + kOctave);
    const std::uint16_t* const halves =
        draw_and_count(storage.data(), random, ranker, rows, index, row + 1 < last_row ? n : 0);
    ranker.decide(bits.data(), halves, index);
    write_row(words, index, bits.data(), n);
  }
}

// Columns of tensors with inner > 1, kRankColumns at a time: unit u is block u % blocks of slab u / blocks.
template <class Count>
void rank_columns(std::uint32_t* words, const RankRows& rows, std::size_t first_unit, std::size_t last_unit) {
  const std::size_t n = rows.length, blocks = (rows.inner + kRankColumns - 1) / kRankColumns, pitch = n + kRowSlack;
  const std::size_t row_words = n / 32 + 2;
  Ranker<Count> ranker(rows);
  const HalfWords random(rows.key, rows.model);
  std::uint16_t across[kRankColumns + kRowSlack], tops[kRankColumns];
  std::uint16_t storage[kRankColumns + 8 + HalfWords::kStep];
  Lines<std::uint16_t> keys(kRankColumns * pitch), halves(kRankColumns * pitch);
  std::vector<std::uint32_t> bits(kRankColumns * row_words);
  for (std::size_t unit = first_unit; unit < last_unit; ++unit) {
    const std::size_t column = unit % blocks * kRankColumns, start = unit / blocks * n * rows.inner + column;
    const std::size_t width = std::min(kRankColumns, rows.inner - column);
    std::fill_n(tops, width, 0);
    for (std::size_t j = 0; j < n; ++j) {
      const std::size_t index = start + j * rows.inner;
      row_keys(across, H{}, rows.tensor, rows.base, index, width);
      const std::uint16_t* const drawn = random_halves(storage, random, index, width, [] {}, [] {});
      for (std::size_t c = 0; c < width; ++c) {
        keys[c * pitch + j] = across[c];
        tops[c] = std::max(tops[c], across[c]);
        halves[c * pitch + j] = drawn[c];
      }
    }
    for (std::size_t c = 0; c < width; ++c) {
      ranker.begin(&keys[c * pitch], tops[c], tops[c]);
      ranker.decide(&bits[c * row_words], &halves[c * pitch], start + c);
    }
    for (std::size_t j = 0; j < n; ++j) {
      std::uint32_t word = 0;
      for (std::size_t c = 0; c < width; ++c) word |= (bits[c * row_words + j / 32] >> (j % 32) & 1u) << c;
      set_bits(words, start + j * rows.inner, word);
    }
  }
}

void rank_mask(std::uint32_t* words, const RankRows& rows, std::size_t begin, std::size_t end) {
  const bool small = rows.length <= 0xFFFF;
  const auto loop = rows.inner == 1 ? small ? rank_rows<std::uint16_t> : rank_rows<std::uint32_t>
                    : small         ? rank_columns<std::uint16_t>
                                    : rank_columns<std::uint32_t>;
  loop(words, rows, begin, end);
}

}  // namespace
}  // namespace fastmerge::cpu
