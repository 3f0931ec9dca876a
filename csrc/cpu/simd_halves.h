// Lanes of 16 bits: masks as bits, tables, running sums. See simd.h.
#pragma once

#include "simd_lanes.h"

namespace fastmerge {
namespace cpu {
namespace {

constexpr std::size_t kHalves = kBytes / 2;  // lanes

FASTMERGE_INLINE H smaller(H a, H b) { return a < b ? a : b; }
FASTMERGE_INLINE H larger(H a, H b) { return a > b ? a : b; }

// The even-numbered (or odd-numbered) 16 bits of two vectors, those of a first.
FASTMERGE_INLINE H even_halves(H a, H b) {
  H from;
  for (std::size_t i = 0; i < kHalves; ++i) from[i] = static_cast<std::uint16_t>(2 * i);
  return __builtin_shuffle(a, b, from);
}

FASTMERGE_INLINE H odd_halves(H a, H b) {
  H from;
  for (std::size_t i = 0; i < kHalves; ++i) from[i] = static_cast<std::uint16_t>(2 * i + 1);
  return __builtin_shuffle(a, b, from);
}

FASTMERGE_INLINE std::uint32_t popcount(std::uint32_t word) {
  return static_cast<std::uint32_t>(__builtin_popcount(word));
}

// One bit per lane of a mask of 0 and 0xFFFF.
FASTMERGE_INLINE std::uint32_t half_bits(H mask) {
#if FASTMERGE_VECTOR_BYTES == 64
  return _mm512_movepi16_mask((__m512i)mask);
#elif FASTMERGE_VECTOR_BYTES == 32
  const __m256i x = (__m256i)mask;
  return static_cast<std::uint32_t>(
      _mm_movemask_epi8(_mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1))));
#elif defined(__SSE2__)
  return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_packs_epi16((__m128i)mask, __m128i{})));
#else
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < kHalves; ++i) bits |= mask[i] & std::uint32_t{1} << i;
  return bits;
#endif
}

// One bit per lane in which a > b, or a == b.
FASTMERGE_INLINE std::uint32_t bits_above(H a, H b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return _mm512_cmpgt_epu16_mask((__m512i)a, (__m512i)b);
#else
  return half_bits(a > b);
#endif
}

FASTMERGE_INLINE std::uint32_t bits_equal(H a, H b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return _mm512_cmpeq_epi16_mask((__m512i)a, (__m512i)b);
#else
  return half_bits(a == b);
#endif
}

// As many bits as Word has, of so many lanes: bits(j) are those of the lanes from j on.
template <class Word, class Bits>
FASTMERGE_INLINE Word word_of(Bits bits) {
  Word word = 0;
  for (std::size_t j = 0; j < 8 * sizeof(Word); j += kHalves) word |= Word{bits(j)} << j;
  return word;
}

// Of 16-bit or 32-bit lanes.
template <class V>
using LaneOf = std::remove_reference_t<decltype(std::declval<V&>()[0])>;
template <class V>
constexpr std::size_t kLanesOf = sizeof(V) / sizeof(LaneOf<V>);

template <class V>
FASTMERGE_INLINE LaneOf<V> largest_lane(V x) {
  LaneOf<V> lanes[kLanesOf<V>];
  store_as(lanes, x);
  return *std::max_element(lanes, lanes + kLanesOf<V>);
}

// Lanes in groups of four, a quarter of a vector apart: the largest of their least ones. The largest lane, but for a
// few.
FASTMERGE_INLINE std::uint16_t large_lane(H x) {
  H from;
  for (std::size_t i = 0; i < kHalves; ++i) from[i] = static_cast<std::uint16_t>((i + kHalves / 2) % kHalves);
  x = smaller(x, __builtin_shuffle(x, from));
  for (std::size_t i = 0; i < kHalves; ++i) from[i] = static_cast<std::uint16_t>((i + kHalves / 4) % kHalves);
  return largest_lane(smaller(x, __builtin_shuffle(x, from)));
}

// x moved up by kStep lanes, with zeros in the first ones.
template <std::size_t kStep, class V>
FASTMERGE_INLINE V moved_up(V x) {
  V from;
  for (std::size_t i = 0; i < kLanesOf<V>; ++i) from[i] = static_cast<LaneOf<V>>(i < kStep ? kLanesOf<V> : i - kStep);
  return __builtin_shuffle(x, V{}, from);
}

// Per lane, the sum of the lanes up to it.
template <class V>
FASTMERGE_INLINE V running_sums(V x) {
  x += moved_up<1>(x);
  x += moved_up<2>(x);
  if constexpr (kLanesOf<V> > 4) x += moved_up<4>(x);
  if constexpr (kLanesOf<V> > 8) x += moved_up<8>(x);
  if constexpr (kLanesOf<V> > 16) x += moved_up<16>(x);
  return x;
}

template <class V>
FASTMERGE_INLINE LaneOf<V> first_lane(V x) {
  LaneOf<V> lane;
  std::memcpy(&lane, &x, sizeof lane);
  return lane;
}

// The last lane in every lane.
template <class V>
FASTMERGE_INLINE V last_lane(V x) {
  return __builtin_shuffle(x, V{} + static_cast<LaneOf<V>>(kLanesOf<V> - 1));
}

// Per lane, the entry of a table.
class Lookup {
 public:
#if FASTMERGE_VECTOR_BYTES == 64
  static constexpr std::size_t kEntries = 64;
  explicit Lookup(const std::uint16_t* table) : first_(load_as<H>(table)), second_(load_as<H>(table + kHalves)) {}
  FASTMERGE_INLINE_MEMBER H operator()(H index) const { return __builtin_shuffle(first_, second_, index); }

 private:
  H first_, second_;
#elif FASTMERGE_VECTOR_BYTES == 32
  static constexpr std::size_t kEntries = 32;
  // A shuffle looks up 16 bytes.
  explicit Lookup(const std::uint16_t* table) {
    for (int i = 0; i < 2; ++i) {
      const H entries = load_as<H>(table + kHalves * i);
      low_[i] = twice(entries & 0xFF);
      high_[i] = twice(entries >> 8);
    }
  }
  FASTMERGE_INLINE_MEMBER H operator()(H index) const {
    const H bytes = index | index << 8;
    return (looked_up(low_, bytes) & 0x00FF) | (looked_up(high_, bytes) & 0xFF00);
  }

 private:
  FASTMERGE_INLINE_MEMBER static H looked_up(const __m256i (&table)[2], H bytes) {
    const __m256i first = _mm256_shuffle_epi8(table[0], (__m256i)bytes);
    const __m256i second = _mm256_shuffle_epi8(table[1], (__m256i)bytes);
    return (H)_mm256_blendv_epi8(first, second, (__m256i)(bytes << 3));
  }

  FASTMERGE_INLINE_MEMBER static __m256i twice(H bytes) {
    const __m256i x = (__m256i)bytes;
    return _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }

  __m256i low_[2], high_[2];
#else
  static constexpr std::size_t kEntries = 64;
  explicit Lookup(const std::uint16_t* table) : table_(table) {}
  FASTMERGE_INLINE_MEMBER H operator()(H index) const {
    H found;
    for (std::size_t i = 0; i < kHalves; ++i) found[i] = table_[index[i]];
    return found;
  }

 private:
  const std::uint16_t* table_;
#endif
};

}  // namespace
}  // namespace cpu
}  // namespace fastmerge
