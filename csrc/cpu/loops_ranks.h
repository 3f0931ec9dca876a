// Ranks in a short list of magnitudes, equal ones by their position. Part of loops.h.
#pragma once

#include "simd_halves.h"

namespace fastmerge::cpu {
namespace {

// How many of n values are less than the one at `position`, or equal to it and before it.
std::uint32_t rank_among(const std::int32_t* values, std::size_t n, std::size_t position) {
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

// The same of keys, of which the one at `position` is even.
__attribute__((noinline)) std::uint32_t rank_of_key(const std::uint16_t* keys, std::size_t n, std::size_t position) {
  const H own = H{} + keys[position];
  const auto below = [&](H bound, std::size_t i) {
    const auto bits = [&](std::size_t j) { return bits_above(bound, load_as<H>(keys + i + j)); };
    return word_of<std::uint32_t>(bits) & (n - i < 32 ? (1u << (n - i)) - 1 : ~0u);
  };
  std::uint32_t rank = 0;
  std::size_t i = 0;
  for (; i + 32 <= position; i += 32) rank += popcount(below(own + 1, i));
  const std::uint32_t before = (1u << (position - i)) - 1;
  rank += popcount((below(own + 1, i) & before) | (below(own, i) & ~before));
  for (i += 32; i < n; i += 32) rank += popcount(below(own, i));
  return rank;
}

// Writes the ranks of so many values to the first elements of a buffer: a stable radix sort that skips digits which all
// share.
void sort_ranks(std::vector<std::uint32_t>& buffer, const std::int32_t* values, std::size_t size) {
  std::uint32_t differing = 0;
  for (std::size_t i = 1; i < size; ++i) differing |= static_cast<std::uint32_t>(values[i] ^ values[0]);
  buffer.resize(3 * size);
  std::uint32_t* order = buffer.data() + size;
  std::uint32_t* other = order + size;
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
  for (std::size_t i = 0; i < size; ++i) buffer[order[i]] = static_cast<std::uint32_t>(i);
}

}  // namespace
}  // namespace fastmerge::cpu
