// Masks, and what moves or counts lanes. See simd.h.
#pragma once

#include "simd.h"

namespace fastmerge {
namespace cpu {
namespace {

// ---- masks: 0 or -1 in every lane ----

// One bit per lane.
FASTMERGE_INLINE unsigned mask_bits(S mask) {
#if FASTMERGE_VECTOR_BYTES == 64
  return _mm512_movepi32_mask((__m512i)mask);
#elif FASTMERGE_VECTOR_BYTES == 32
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps((__m128)mask));
#else
  unsigned bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= mask[i] ? 1u << i : 0u;
  return bits;
#endif
}

#if FASTMERGE_VECTOR_BYTES == 64
FASTMERGE_INLINE unsigned mask_bits(M mask) { return mask.bits; }
#endif

// Where a is set and b is not.
FASTMERGE_INLINE M without(M a, M b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return {static_cast<__mmask16>(a.bits & ~b.bits)};
#else
  return a & ~b;
#endif
}

// Stores 32 masks of 16 bits, one per bit of the word, the lowest first.
FASTMERGE_INLINE void store_bits(std::uint16_t* p, std::uint32_t word) {
#if FASTMERGE_VECTOR_BYTES == 64
  store_as(p, _mm512_movm_epi16(word));
#else
  constexpr int kHalves = 2 * kWidth;
  H bit;
  for (int i = 0; i < kHalves; ++i) bit[i] = static_cast<std::uint16_t>(1u << i);
  for (int i = 0; i < 32; i += kHalves) {
    store_as(p + i, ((H{} + static_cast<std::uint16_t>(word >> i)) & bit) == bit);
  }
#endif
}

// The reverse.
FASTMERGE_INLINE std::uint32_t load_bits(const std::uint16_t* p) {
#if FASTMERGE_VECTOR_BYTES == 64
  return _mm512_movepi16_mask(load_as<__m512i>(p));
#elif FASTMERGE_VECTOR_BYTES == 32
  // Packed within halves of 16 bytes, so that the middle ones change places.
  const __m256i packed = _mm256_packs_epi16(load_as<__m256i>(p), load_as<__m256i>(p + 16));
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(packed, 0xD8)));
#else
  const H bit{1, 2, 4, 8, 16, 32, 64, 128};
  const auto sixteen = [&](const std::uint16_t* from) {
    const U64 both = (U64)((load_as<H>(from) & bit) | (load_as<H>(from + 8) & bit << 8));
    std::uint64_t bits = both[0] | both[1];
    bits |= bits >> 32;
    return static_cast<std::uint32_t>(bits | bits >> 16) & 0xFFFFu;
  };
  return sixteen(p) | sixteen(p + 16) << 16;
#endif
}

#if FASTMERGE_VECTOR_BYTES == 32
// Per set of eight lanes, the order that puts the lanes of the set first.
struct FirstLanes {
  constexpr FirstLanes() : order{} {
    for (int set = 0; set < 256; ++set) {
      int next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (set >> lane & 1) order[set][next++] = static_cast<std::uint8_t>(lane);
      }
    }
  }
  std::uint8_t order[256][8];
};
constexpr FirstLanes kFirstLanes;
#endif

// Stores the lanes of x whose bit is set, in order, and returns how many; may write a whole vector. Without a branch on
// the bits where the instruction set allows: they are as good as random.
FASTMERGE_INLINE int store_selected(std::uint32_t* p, U x, unsigned bits) {
#if FASTMERGE_VECTOR_BYTES == 64
  store_as(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)x));
  return __builtin_popcount(bits);
#elif FASTMERGE_VECTOR_BYTES == 32
  const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kFirstLanes.order[bits]));
  store_as(p, _mm256_permutevar8x32_epi32((__m256i)x, order));
  return __builtin_popcount(bits);
#else
  int count = 0;
  for (int lane = 0; lane < kWidth; ++lane, bits >>= 1) {
    p[count] = x[lane];
    count += bits & 1u;
  }
  return count;
#endif
}

FASTMERGE_INLINE std::int32_t sum_of_lanes(S x) {
  // Through memory of its own: a subscript would keep x in memory for all its life.
  std::int32_t lanes[kWidth];
  store_as(lanes, x);
  std::int32_t sum = 0;
  for (const std::int32_t lane : lanes) sum += lane;
  return sum;
}

#if FASTMERGE_VECTOR_BYTES == 64
constexpr U kLaneNumbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif FASTMERGE_VECTOR_BYTES == 32
constexpr U kLaneNumbers{0, 1, 2, 3, 4, 5, 6, 7};
#else
constexpr U kLaneNumbers{0, 1, 2, 3};
#endif

// Adds float64 of the first and the second half of the lanes to two sums, where the mask is set.
FASTMERGE_INLINE void add_kept(D* sums, D low, D high, M mask) {
#if FASTMERGE_VECTOR_BYTES == 64
  sums[0] = (D)_mm512_mask_add_pd((__m512d)sums[0], static_cast<__mmask8>(mask.bits), (__m512d)sums[0], (__m512d)low);
  sums[1] =
      (D)_mm512_mask_add_pd((__m512d)sums[1], static_cast<__mmask8>(mask.bits >> 8), (__m512d)sums[1], (__m512d)high);
#else
  const S half = (S)kLaneNumbers >> 1;
  sums[0] += (D)((S)low & __builtin_shuffle(mask, half));
  sums[1] += (D)((S)high & __builtin_shuffle(mask, half + kDoubles));
#endif
}

// In every 16 bytes, the first (or second) 8 of a, then those of b.
FASTMERGE_INLINE U64 first_words(U64 a, U64 b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (U64)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (U64)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#else
  return U64{a[0], b[0]};
#endif
}

FASTMERGE_INLINE U64 second_words(U64 a, U64 b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (U64)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (U64)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  return U64{a[1], b[1]};
#endif
}

}  // namespace
}  // namespace cpu
}  // namespace fastmerge
