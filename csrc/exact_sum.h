// The exact sum of float64 numbers, rounded once. Its contract is kernels/_sums.py.
//
// A finite number is an integer times 2^-1074 of at most 2098 bits. The sum is kept as an integer, too, in digits of 32
// bits: a number adds to three of them, and since they have room for 2^31 additions, nothing is carried meanwhile. So
// the state does not depend on the order of the numbers, and two states add up to that of all their numbers.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "fastmerge_math.h"

namespace fastmerge {

// ---- the digits of a sum: `digits` is a pointer to them, or anything with a subscript that gives references ----

// 66 digits of a number, and one for the carries of as many numbers as there can be.
constexpr int kSumDigits = 67;
constexpr std::uint64_t kDigitMask = 0xFFFFFFFFu;

// Whether a number is infinite or NaN, and has no digits.
FASTMERGE_HD bool is_special(double value) { return (bit_cast<std::uint64_t>(value) >> 52 & 0x7FFu) == 0x7FFu; }

// Calls add(i, digit) for the three digits of a finite number, with its sign.
template <class Add>
FASTMERGE_HD void add_digits(double value, Add add) {
  const auto bits = bit_cast<std::uint64_t>(value);
  const int exponent = static_cast<int>(bits >> 52 & 0x7FFu);
  // Subnormal numbers have the exponent of the least normal ones, without the leading bit.
  const std::uint64_t mantissa = (bits & ((std::uint64_t{1} << 52) - 1)) | std::uint64_t{exponent != 0} << 52;
  const int position = exponent - (exponent != 0), first = position / 32, shift = position % 32;
  const std::uint64_t low = mantissa << shift, high = shift ? mantissa >> (64 - shift) : 0;
  const std::int64_t negative = -static_cast<std::int64_t>(bits >> 63);
  const auto with_sign = [&](std::uint64_t digit) { return (static_cast<std::int64_t>(digit) ^ negative) - negative; };
  add(first, with_sign(low & kDigitMask));
  add(first + 1, with_sign(low >> 32));
  add(first + 2, with_sign(high));
}

// Brings all digits but the last into 0 .. 2^32 - 1, and returns the sign of the sum: that of the last.
template <class Digits>
FASTMERGE_HD std::int64_t carry_digits(Digits digits) {
  std::int64_t carried = 0;
  for (int i = 0; i < kSumDigits - 1; ++i) {
    const std::int64_t digit = digits[i] + carried;
    digits[i] = digit & static_cast<std::int64_t>(kDigitMask);
    carried = digit >> 32;
  }
  return digits[kSumDigits - 1] += carried;
}

FASTMERGE_HD int bit_length(std::uint64_t value) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(static_cast<long long>(value));
#else
  return value ? 64 - __builtin_clzll(value) : 0;
#endif
}

// Returns the sum rounded to nearest, ties to even; infinity beyond the largest number. A zero sum is +0. Overwrites
// the digits.
template <class Digits>
FASTMERGE_HD double round_digits(Digits digits) {
  const bool negative = carry_digits(digits) < 0;
  if (negative) {
    for (int i = 0; i < kSumDigits; ++i) digits[i] = -digits[i];
    carry_digits(digits);
  }
  int top = kSumDigits - 1;
  while (top >= 0 && digits[top] == 0) --top;
  if (top < 0) return 0.0;
  // The three highest digits hold the 53 bits that stay, the one that decides, and more.
  const auto digit = [&](int i) { return i < 0 ? 0 : static_cast<std::uint64_t>(digits[i]); };
  const int length = bit_length(digit(top));  // 1 .. 32
  std::uint64_t kept = (digit(top) << 32 | digit(top - 1)) << (32 - length) | digit(top - 2) >> length;
  bool rest = (digit(top - 2) & ((std::uint64_t{1} << length) - 1)) != 0;
  for (int i = 0; i < top - 2 && !rest; ++i) rest = digits[i] != 0;
  // `kept` has 64 bits, of weight 2^exponent. Bits below 2^-1074 are zero.
  const int exponent = 32 * top + length - 64 - 1074;
  constexpr int kDropped = 64 - 53;
  const std::uint64_t dropped = kept & ((1u << kDropped) - 1), half = 1u << (kDropped - 1);
  kept >>= kDropped;
  kept += dropped > half || (dropped == half && (rest || (kept & 1)));
  const double magnitude = std::ldexp(static_cast<double>(kept), exponent + kDropped);
  return negative ? -magnitude : magnitude;
}

// ---- a sum on the processor ----

// kMostAdded: additions after which digits are carried; there is room for twice as many.
template <std::uint32_t kMostAdded = 1u << 30>
class ExactSum {
 public:
  void add(double value) {
    if (is_special(value)) {
      special_ += value;
      return;
    }
    add_digits(value, [&](int i, std::int64_t digit) { digits_[i] += digit; });
    if (++added_ == kMostAdded) {
      carry_digits<std::int64_t*>(digits_);
      added_ = 0;
    }
  }

  // As round_digits. Infinities and NaNs add as in floating point.
  double rounded() const {
    if (special_ != 0) return special_;
    ExactSum sum = *this;
    return round_digits<std::int64_t*>(sum.digits_);
  }

 private:
  std::int64_t digits_[kSumDigits] = {};
  double special_ = 0;
  std::uint32_t added_ = 0;
};

}  // namespace fastmerge
