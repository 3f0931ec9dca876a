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

// Which of 64 numbers are above one edge, and which below another.
struct Sides {
  std::uint64_t above, below;
};

struct EdgesOfLanes {
  H high, low;
};

// edges(j): of the lanes from j on.
template <class Find>
FASTMERGE_INLINE Sides sides_of(const std::uint16_t* numbers, Find edges) {
  Sides sides{};
  for (std::size_t j = 0; j < 64; j += kHalves) {
    const H number = load_as<H>(numbers + j);
    const EdgesOfLanes found = edges(j);
    sides.above |= std::uint64_t{bits_above(number, found.high)} << j;
    sides.below |= std::uint64_t{bits_above(found.low, number)} << j;
  }
  return sides;
}

// A high and a low edge for each of so many classes.
class Edges {
 public:
#if FASTMERGE_VECTOR_BYTES == 32
  static constexpr std::size_t kClasses = 32;
  // Of the high bytes alone, since a shuffle looks up bytes; as signed ones, since these are compared.
  Edges(const std::uint16_t* high, const std::uint16_t* low) {
    fill(high_, high);
    fill(low_, low);
  }

  // Of numbers in the classes ids >> shift. What differs from an edge in its low byte alone is on neither side.
  FASTMERGE_INLINE_MEMBER Sides operator()(const std::uint16_t* numbers, const std::uint16_t* ids, int shift) const {
    Sides sides{};
    for (int j = 0; j < 64; j += 32) {
      const __m256i classes = bytes_of(ids + j, shift), number = signed_bytes(numbers + j);
      const __m256i second = _mm256_slli_epi16(classes, 3);
      const auto edge = [&](const __m256i(&table)[2]) {
        return _mm256_blendv_epi8(_mm256_shuffle_epi8(table[0], classes), _mm256_shuffle_epi8(table[1], classes),
                                  second);
      };
      sides.above |= bits_of(_mm256_cmpgt_epi8(number, edge(high_))) << j;
      sides.below |= bits_of(_mm256_cmpgt_epi8(edge(low_), number)) << j;
    }
    return sides;
  }

 private:
  // 32 numbers of 16 bits shifted to bytes. Packed within halves of 16 bytes, so that the middle ones change places.
  FASTMERGE_INLINE_MEMBER static __m256i bytes_of(const std::uint16_t* p, int shift) {
    return _mm256_packus_epi16((__m256i)(load_as<H>(p) >> shift), (__m256i)(load_as<H>(p + kHalves) >> shift));
  }
  FASTMERGE_INLINE_MEMBER static __m256i signed_bytes(const std::uint16_t* p) {
    return _mm256_xor_si256(bytes_of(p, 8), _mm256_set1_epi8(-128));
  }
  FASTMERGE_INLINE_MEMBER static std::uint64_t bits_of(__m256i mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(mask, 0xD8)));
  }
  static void fill(__m256i (&table)[2], const std::uint16_t* edges) {
    const __m256i bytes = _mm256_permute4x64_epi64(signed_bytes(edges), 0xD8);
    table[0] = _mm256_permute2x128_si256(bytes, bytes, 0x00);
    table[1] = _mm256_permute2x128_si256(bytes, bytes, 0x11);
  }

  __m256i high_[2], low_[2];
#else
  static constexpr std::size_t kClasses = 64;
  Edges(const std::uint16_t* high, const std::uint16_t* low) : high_(high), low_(low) {}

  // Of numbers in the classes ids >> shift.
  FASTMERGE_INLINE_MEMBER Sides operator()(const std::uint16_t* numbers, const std::uint16_t* ids, int shift) const {
    return sides_of(numbers, [&](std::size_t j) {
      const H index = load_as<H>(ids + j) >> shift;
      return EdgesOfLanes{high_(index), low_(index)};
    });
  }

 private:
#if FASTMERGE_VECTOR_BYTES == 64
  struct Table {
    explicit Table(const std::uint16_t* table) : first(load_as<H>(table)), second(load_as<H>(table + kHalves)) {}
    FASTMERGE_INLINE_MEMBER H operator()(H index) const { return __builtin_shuffle(first, second, index); }
    H first, second;
  };
#else
  struct Table {
    explicit Table(const std::uint16_t* table) : table(table) {}
    FASTMERGE_INLINE_MEMBER H operator()(H index) const {
      H found;
      for (std::size_t i = 0; i < kHalves; ++i) found[i] = table[index[i]];
      return found;
    }
    const std::uint16_t* table;
  };
#endif
  Table high_, low_;
#endif
};

}  // namespace
}  // namespace cpu
}  // namespace fastmerge
