// Vectors of one instruction set. Included once per isa_*.cpp, after its target is set; so everything has internal linkage.
//
// GCC vector types do the arithmetic on every processor. Intrinsics stand only where the compiler's code is slow:
// narrowing, masks, compression and the wide product. The width names the instruction set, since g++ before 13 does not
// define __AVX2__ after a target pragma.
#pragma once

#include "../fastmerge_math.h"

#define FASTMERGE_INLINE __attribute__((always_inline)) static inline

namespace fastmerge {
namespace cpu {
namespace {

constexpr int kBytes = FASTMERGE_VECTOR_BYTES;
constexpr int kWidth = kBytes / 4;  // float32 lanes

using F = float __attribute__((vector_size(kBytes)));
using S = std::int32_t __attribute__((vector_size(kBytes)));
using U = std::uint32_t __attribute__((vector_size(kBytes)));
using U64 = std::uint64_t __attribute__((vector_size(kBytes)));
using D = double __attribute__((vector_size(kBytes)));
using H = std::uint16_t __attribute__((vector_size(kBytes)));
using HalfH = std::uint16_t __attribute__((vector_size(kBytes / 2)));
using HalfS16 = std::int16_t __attribute__((vector_size(kBytes / 2)));
using HalfF = float __attribute__((vector_size(kBytes / 2)));

constexpr int kDoubles = kBytes / 8;

// ---- unaligned memory ----

template <class V>
struct __attribute__((packed, may_alias)) Unaligned {
  V value;
};

template <class V>
FASTMERGE_INLINE V load_as(const void* p) {
  return static_cast<const Unaligned<V>*>(p)->value;
}

template <class V>
FASTMERGE_INLINE void store_as(void* p, V value) {
  static_cast<Unaligned<V>*>(p)->value = value;
}

FASTMERGE_INLINE F load(const float* p) { return load_as<F>(p); }
FASTMERGE_INLINE void store(float* p, F x) { store_as(p, x); }

FASTMERGE_INLINE U load_halves(const void* p) { return __builtin_convertvector(load_as<HalfH>(p), U); }

// Stores the low 16 bits of every lane; they must be a sign-extended 16-bit number.
FASTMERGE_INLINE void store_halves(void* p, S x) {
#if FASTMERGE_VECTOR_BYTES == 64
  store_as(p, _mm512_cvtepi32_epi16((__m512i)x));
#elif FASTMERGE_VECTOR_BYTES == 32
  const __m256i v = (__m256i)x;
  store_as(p, _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
#elif defined(__SSE2__)
  const __m128i packed = _mm_packs_epi32((__m128i)x, (__m128i)x);
  store_as(p, static_cast<std::int64_t>(_mm_cvtsi128_si64(packed)));
#else
  store_as(p, __builtin_convertvector(x, HalfS16));
#endif
}

}  // namespace
}  // namespace cpu

template <>
struct Lanes<cpu::F> {
  using Signed = cpu::S;
  using Unsigned = cpu::U;

  // Products of the even lanes and of the odd lanes, whose halves are then put back in order.
  FASTMERGE_HD cpu::U multiply(cpu::U a, std::uint32_t b, cpu::U& high) {
    using cpu::U;
    using cpu::U64;
    const U64 factor = U64{} + b;
#if FASTMERGE_VECTOR_BYTES == 64
    const U64 even = (U64)_mm512_mul_epu32((__m512i)a, (__m512i)factor);
    const U64 odd = (U64)_mm512_mul_epu32((__m512i)((U64)a >> 32), (__m512i)factor);
#elif FASTMERGE_VECTOR_BYTES == 32
    const U64 even = (U64)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
    const U64 odd = (U64)_mm256_mul_epu32((__m256i)((U64)a >> 32), (__m256i)factor);
#elif defined(__SSE2__)
    const U64 even = (U64)_mm_mul_epu32((__m128i)a, (__m128i)factor);
    const U64 odd = (U64)_mm_mul_epu32((__m128i)((U64)a >> 32), (__m128i)factor);
#else
    const U64 even = ((U64)a & 0xFFFFFFFFu) * factor;
    const U64 odd = ((U64)a >> 32) * factor;
#endif
    const U64 upper = U64{} + 0xFFFFFFFF00000000u;
    high = (U)((even >> 32) | (odd & upper));
    return (U)((even & ~upper) | (odd << 32));
  }
};

namespace cpu {
namespace {

FASTMERGE_INLINE F load(const BFloat16* p) { return from_bfloat16<F>(load_halves(p)); }
FASTMERGE_INLINE F load(const Float16* p) { return from_float16<F>(load_halves(p)); }
FASTMERGE_INLINE void store(BFloat16* p, F x) { store_halves(p, (S)to_bfloat16_high(x) >> 16); }
FASTMERGE_INLINE void store(Float16* p, F x) { store_halves(p, (S)(to_float16(x) << 16) >> 16); }

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

// Stores the lanes of x whose bit is set, in order, and returns how many; may write a whole vector.
FASTMERGE_INLINE int store_selected(std::uint32_t* p, U x, unsigned bits) {
#if FASTMERGE_VECTOR_BYTES == 64
  store_as(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)x));
  return __builtin_popcount(bits);
#else
  std::uint32_t lanes[kWidth];
  store_as(lanes, x);
  int count = 0;
  for (; bits; bits &= bits - 1) p[count++] = lanes[__builtin_ctz(bits)];
  return count;
#endif
}

template <class V>
FASTMERGE_INLINE auto sum_of_lanes(V x) {
  auto sum = x[0];
  for (unsigned i = 1; i < sizeof x / sizeof x[0]; ++i) sum += x[i];
  return sum;
}

// ---- interleaving inside every 16 bytes ----

FASTMERGE_INLINE U interleave_low(U a, U b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (U)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (U)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
#else
  return __builtin_shuffle(a, b, U{0, 4, 1, 5});
#endif
}

FASTMERGE_INLINE U interleave_high(U a, U b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (U)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (U)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
#else
  return __builtin_shuffle(a, b, U{2, 6, 3, 7});
#endif
}

FASTMERGE_INLINE U interleave_low_pairs(U a, U b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (U)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (U)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#else
  return __builtin_shuffle(a, b, U{0, 1, 4, 5});
#endif
}

FASTMERGE_INLINE U interleave_high_pairs(U a, U b) {
#if FASTMERGE_VECTOR_BYTES == 64
  return (U)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif FASTMERGE_VECTOR_BYTES == 32
  return (U)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  return __builtin_shuffle(a, b, U{2, 3, 6, 7});
#endif
}

}  // namespace
}  // namespace cpu
}  // namespace fastmerge
