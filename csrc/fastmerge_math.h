// The arithmetic of every element-wise operation, once. The CPU backend instantiates it with vectors of lanes, nvcc
// with scalars, and both must return the bits of the PyTorch references in kernels/*.py, which hold the contracts.
//
// F is a float or a vector of floats; see Lanes. Nothing here may be contracted into a fused multiply-add
// (-ffp-contract=off, --fmad=false). Everything has internal linkage: the CPU backend compiles this file once per
// instruction set, and the linker must not keep one copy for all.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FASTMERGE_HD __host__ __device__ __forceinline__ static
#else
#define FASTMERGE_HD __attribute__((always_inline)) static inline
#endif

namespace fastmerge {

enum Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum Rule : int { kRuleAll = 0, kRuleBand = 1, kRuleRandom = 2, kRuleMask = 3 };
enum Vote : int { kVoteNone = 0, kVoteWeighted = 1, kVoteSum = 2, kVoteCount = 3 };
enum Divide : int { kDivideNone = 0, kDivideWeights = 1, kDivideCount = 2 };

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// What depends on whether F is a scalar or a vector. Specialized for vectors in cpu/simd.h.
template <class F>
struct Lanes;

template <>
struct Lanes<float> {
  using Signed = std::int32_t;
  using Unsigned = std::uint32_t;

  // x where the mask is set, +0 elsewhere.
  FASTMERGE_HD float select(bool mask, float x) { return mask ? x : 0.0f; }
  // True of NaN.
  FASTMERGE_HD bool above_zero(float x) { return !(x <= 0.0f); }
  // 1 in the place of a zero.
  FASTMERGE_HD float unless_zero(float x) { return x == 0.0f ? 1.0f : x; }
  // The sign bit where votes elect a negative sign, and x with that flipped.
  FASTMERGE_HD std::uint32_t flip_of(float votes) { return votes >= 0.0f ? 0u : 0x80000000u; }
  FASTMERGE_HD float flipped(float x, std::uint32_t flip) {
    return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, x) ^ flip);
  }
};

template <class To, class From>
FASTMERGE_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the types differ in size");
  return __builtin_bit_cast(To, from);
}

// Subtracting zero keeps the sign of a zero, adding it would not.
template <class F>
FASTMERGE_HD F splat(float value) {
  return value - F{};
}

// ---- dtypes: bits of a bfloat16 or float16 in the low half of a 32-bit lane ----

template <class F, class U = typename Lanes<F>::Unsigned>
FASTMERGE_HD F from_bfloat16(U bits) {
  return bit_cast<F>(bits << 16);
}

// The bfloat16 nearest to x, ties to even, in the high half of the lane; the low half is arbitrary.
template <class F, class U = typename Lanes<F>::Unsigned>
FASTMERGE_HD U to_bfloat16_high(F x) {
  const U bits = bit_cast<U>(x);
  const U rounded = bits + (((bits >> 16) & 1u) + 0x7FFFu);
  return x == x ? rounded : U{} + 0x7FC00000u;
}

// Exact. Subnormals are rebuilt by a float32 subtraction instead of a multiplication with a denormal operand.
template <class F, class U = typename Lanes<F>::Unsigned>
FASTMERGE_HD F from_float16(U bits) {
  const U shifted = (bits & 0x7FFFu) << 13;
  const U exponent = shifted & (0x7C00u << 13);
  const U normal = shifted + (112u << 23);
  const U special = shifted + (224u << 23);
  const U subnormal = bit_cast<U>(bit_cast<F>(shifted + (113u << 23)) - splat<F>(6.103515625e-05f));
  const U magnitude = exponent == (0x7C00u << 13) ? special : (exponent == 0u ? subnormal : normal);
  return bit_cast<F>(magnitude | ((bits & 0x8000u) << 16));
}

// The float16 nearest to x, ties to even, in the low half of the lane; the high half is zero.
template <class F, class U = typename Lanes<F>::Unsigned>
FASTMERGE_HD U to_float16(F x) {
  const U bits = bit_cast<U>(x);
  const U magnitude = bits & 0x7FFFFFFFu;
  const U sign = (bits >> 16) & 0x8000u;
  // Adding 0.5 shifts a subnormal result's last bit to that of the sum, so that the adder rounds it.
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + splat<F>(0.5f)) - 0x3F000000u;
  const U normal = (magnitude + (((magnitude >> 13) & 1u) + 0xFFFu) - (112u << 23)) >> 13;
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  const U special = magnitude > 0x7F800000u ? U{} + 0x7E00u : U{} + 0x7C00u;
  return (magnitude < 0x477FF000u ? finite : special) | sign;
}

// ---- weighted sums ----

// Two roundings. Weighted sums, low-rank updates and merges accumulate with this and nothing else.
template <class F>
FASTMERGE_HD F multiply_add(F acc, F a, F b) {
  return acc + a * b;
}

// fetch(k) returns the element of tensor k.
template <class F, class Fetch>
FASTMERGE_HD F weighted_sum_element(int count, const float* weights, Fetch fetch) {
  F acc = fetch(0) * splat<F>(weights[0]);
  for (int k = 1; k < count; ++k) acc = multiply_add<F>(acc, fetch(k), splat<F>(weights[k]));
  return acc;
}

// ---- deltas and keep rules ----

// All NaNs count as this magnitude, just above infinity; their payloads differ between processors.
constexpr std::int32_t kNanMagnitude = 0x7F800001;
constexpr std::int32_t kLargestBits = 0x7FFFFFFF;

// The float32 bits of |delta|: they order like the magnitudes. Those of NaNs are kNanMagnitude or more; boundaries made
// by threshold_at need no more, anything that compares for equality takes canonical_bits.
template <class F, class S = typename Lanes<F>::Signed>
FASTMERGE_HD S magnitude_bits(F delta) {
  return bit_cast<S>(delta) & kLargestBits;
}

template <class S>
FASTMERGE_HD S canonical_bits(S magnitude) {
  return magnitude > kNanMagnitude ? S{} + kNanMagnitude : magnitude;
}

// A boundary at one index: elements whose magnitude bits exceed the returned value are kept.
FASTMERGE_HD std::int32_t threshold_at(std::int64_t threshold, std::int64_t break_index, std::int64_t index) {
  const std::int64_t above = index < break_index ? threshold - 1 : threshold;
  return above < kNanMagnitude ? static_cast<std::int32_t>(above) : kLargestBits;
}

// The drop threshold of the element of a rank in its row: kernels/rank_mask.py.
FASTMERGE_HD std::uint32_t rank_threshold(std::uint32_t first, std::uint64_t step, std::uint64_t rank) {
  return first - static_cast<std::uint32_t>((step * rank + (std::uint64_t{1} << 30)) >> 31);
}

// ---- quotients ----

// 1 / divisor as a sum of two numbers of one sign: `high` has 29 bits, so that a float32 times it is exact in float64.
struct alignas(16) Quotient {
  double high, low;
};

// numerator / divisor, rounded once, for every numerator: what is rounded to float32 lies within 2^-52 of the quotient,
// which is either a midpoint, and then exact here, or 2^-49 away from one. No slow path for zeros and subnormals.
FASTMERGE_HD float divided(float numerator, const Quotient& by) {
  const double x = numerator;
#if defined(__CUDA_ARCH__)
  // The same bits, since the first product is exact.
  return static_cast<float>(fma(x, by.high, x * by.low));
#else
  return static_cast<float>(x * by.high + x * by.low);
#endif
}

// Host only. kernels/_quotients.py is the same in Python.
static inline Quotient quotient_of(float divisor) {
  const double x = divisor;
  // Toward zero, for the sign of the rest.
  const double high = bit_cast<double>(bit_cast<std::uint64_t>(1 / x) & ~std::uint64_t{0xFFFFFF});
  const double rest = (1 - high * x) / x;
  // Of an infinite divisor both are zero. Elsewhere neither may be: infinity times zero would be NaN.
  return {high, high == 0 ? high : rest == 0 ? high * 0x1p-110 : rest};
}

// What an elected sum is divided by, per set of the models that agree: entry b for the models k with bit k in b.
static inline void elected_quotients(Quotient* table, const float* weights, int count) {
  for (unsigned models = 0; models < 1u << count; ++models) {
    float divisor = 0.0f;
    for (int k = 0; k < count; ++k) {
      if (models >> k & 1) divisor += weights[k];
    }
    table[models] = quotient_of(divisor == 0.0f ? 1.0f : divisor);
  }
}

template <class F>
FASTMERGE_HD F divided(F numerator, F divisor) {
  return numerator / divisor;
}

// A GPU divides zeros by a call that costs more than a merge, so it divides 1 there.
FASTMERGE_HD float divided(float numerator, float divisor) {
  const bool zero = numerator == 0.0f;
  const float quotient = (zero ? 1.0f : numerator) / divisor;
  const std::uint32_t sign = bit_cast<std::uint32_t>(divisor) & 0x80000000u;
  return zero ? bit_cast<float>(bit_cast<std::uint32_t>(numerator) ^ sign) : quotient;
}

// ---- fused sparse merge ----

// sum + x where the mask is set. Adding +0 elsewhere changes nothing: a sum that began with +0 is never -0.
template <class F, class Mask>
FASTMERGE_HD F add_where(Mask mask, F sum, F x) {
  return sum + Lanes<F>::select(mask, x);
}

// One predicated instruction on a GPU.
FASTMERGE_HD float add_where(bool mask, float sum, float x) { return mask ? sum + x : sum; }

// The scalars of a merge. factors, weights: one per model (weights are ones for divide count).
struct MergeScalars {
  const float* factors;
  const float* weights;
  float scale;
  float divisor;  // of vote none
  bool divides;
  const Quotient* quotients;  // of elected_quotients, or that of the divisor
};

// One model's part in an element. Mask is the type of a comparison of two F.
template <class F, class Mask>
struct Part {
  F delta;
  Mask kept;

  // Multiplied, so that a dropped NaN or infinity becomes NaN and never vanishes.
  FASTMERGE_HD F times(const Part& part, float factor) {
    return part.delta * Lanes<F>::select(part.kept, splat<F>(factor));
  }
};

template <int kVote, class F, class P>
FASTMERGE_HD F vote_of(const P& part, float factor) {
  const F vote = part.times(part, kVote == kVoteWeighted ? factor : 1.0f);
  if constexpr (kVote != kVoteCount) {
    return vote;
  } else {
    return Lanes<F>::select(vote > F{}, splat<F>(1.0f)) - Lanes<F>::select(vote < F{}, splat<F>(1.0f));
  }
}

// Where the elected sign is negative, signs are flipped before they are compared with it.
template <class F>
FASTMERGE_HD auto flip_of(F votes) {
  return Lanes<F>::flip_of(votes);
}

// Whether a part with that contribution has the elected sign. A NaN is neither <= 0 nor >= 0, so it always has.
template <int kVote, class F, class P, class U = typename Lanes<F>::Unsigned>
FASTMERGE_HD auto agrees(const P& part, F contribution, U flip) {
  return Lanes<F>::above_zero(Lanes<F>::flipped(kVote == kVoteWeighted ? contribution : part.times(part, 1.0f), flip));
}

// Dividing by 1 changes nothing, and costs a GPU less than a branch.
template <class F>
FASTMERGE_HD F divided_unless_zero(F merged, F divisor) {
  return divided(merged, Lanes<F>::unless_zero(divisor));
}

// Returns base + the merged deltas of `count` models; fetch(k) returns model k's Part. With a constant count the
// compiler unrolls the loops and computes each part once. kQuotients: divides by s.quotients, with the same bits.
template <int kVote, bool kQuotients = false, class F, class Fetch>
FASTMERGE_HD F sparse_merge_element(F base, int count, const MergeScalars& s, Fetch fetch) {
  using U = typename Lanes<F>::Unsigned;
  F merged{};
  if constexpr (kVote == kVoteNone) {
    for (int k = 0; k < count; ++k) {
      const auto part = fetch(k);
      const F contribution = part.times(part, s.factors[k]);
      merged = k == 0 ? contribution : merged + contribution;
    }
    if (s.divides) {
      if constexpr (kQuotients) {
        merged = divided(merged, *s.quotients);
      } else {
        merged = divided(merged, splat<F>(s.divisor));
      }
    }
  } else {
    F votes{};
    for (int k = 0; k < count; ++k) {
      const auto part = fetch(k);
      const F vote = vote_of<kVote, F>(part, s.factors[k]);
      votes = k == 0 ? vote : votes + vote;
    }
    const U flip = flip_of(votes);
    F divisor{};
    unsigned agreeing = 0;
    for (int k = 0; k < count; ++k) {
      const auto part = fetch(k);
      const F contribution = part.times(part, s.factors[k]);
      const auto agreed = agrees<kVote, F>(part, contribution, flip);
      if constexpr (kQuotients) {
        merged = add_where(agreed, merged, contribution);
        agreeing |= agreed ? 1u << k : 0u;
      } else {
        const F weight = splat<F>(s.weights[k]);
        if (kVote == kVoteWeighted && k == 0) {
          // Not added to +0: what agrees is no zero, and a divisor of zero is 1.
          merged = Lanes<F>::select(agreed, contribution);
          divisor = Lanes<F>::select(agreed, weight);
        } else {
          merged = add_where(agreed, merged, contribution);
          divisor = add_where(agreed, divisor, weight);
        }
      }
    }
    if (s.divides) {
      if constexpr (kQuotients) {
        merged = divided(merged, s.quotients[agreeing]);
      } else {
        merged = divided_unless_zero<F>(merged, divisor);
      }
    }
  }
  return base + merged * splat<F>(s.scale);
}

// ---- Philox4x32-10 (Salmon et al. 2011) ----

// The 64-bit products of the low halves of 64-bit words. W is a word or a vector of words.
template <class W>
struct LowHalves;

template <>
struct LowHalves<std::uint64_t> {
  FASTMERGE_HD std::uint64_t multiply(std::uint64_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
    // nvcc makes two instructions of the expression below.
    std::uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(static_cast<std::uint32_t>(a)), "r"(b));
    return product;
#else
    return static_cast<std::uint32_t>(a) * std::uint64_t{b};
#endif
  }
};

// The factors of a round.
constexpr std::uint32_t kPhilox0 = 0xD2511F53u, kPhilox1 = 0xCD9E8D57u;
// The keys of round r are those of the first plus r times these.
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

// The counter is the low halves of four 64-bit words; what the high halves of counter and keys hold does not matter.
template <class W>
FASTMERGE_HD void philox_round(W (&counter)[4], W key0, W key1) {
  const W product0 = LowHalves<W>::multiply(counter[0], kPhilox0);
  const W product1 = LowHalves<W>::multiply(counter[2], kPhilox1);
  counter[0] = (product1 >> 32) ^ counter[1] ^ key0;
  counter[1] = product1;
  counter[2] = (product0 >> 32) ^ counter[3] ^ key1;
  counter[3] = product0;
}

FASTMERGE_HD void philox4x32(std::uint64_t (&counter)[4], std::uint64_t key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    philox_round<std::uint64_t>(counter, key + std::uint64_t{kWeyl0} * round,
                                (key >> 32) + std::uint64_t{kWeyl1} * round);
  }
}

// The 16-bit number of a stream for the element of a model with that global index: kernels/philox.py.
FASTMERGE_HD std::uint32_t half_word(std::uint64_t key, std::uint32_t model, std::uint32_t stream,
                                     std::uint64_t index) {
  const std::uint64_t block = index >> 3;
  std::uint64_t words[4] = {block, block >> 32, model, stream};
  philox4x32(words, key);
  // No subscript that is known late: it would put the words into memory.
  const std::uint64_t low = index & 2 ? words[1] : words[0], high = index & 2 ? words[3] : words[2];
  return static_cast<std::uint32_t>((index & 4 ? high : low) >> (16 * (index & 1))) & 0xFFFFu;
}

// For an element whose half word of stream 0 is `half`: whether its word reaches the drop threshold.
FASTMERGE_HD bool keeps_element(std::uint32_t half, std::uint32_t drop, std::uint64_t key, std::uint32_t model,
                                std::uint64_t index) {
  return half != drop >> 16 ? half > drop >> 16 : half_word(key, model, 1, index) >= (drop & 0xFFFFu);
}

}  // namespace fastmerge
