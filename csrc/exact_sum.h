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

namespace fastmerge {

// kMostAdded: additions after which digits are carried; there is room for twice as many.
template <std::uint32_t kMostAdded = 1u << 30>
class ExactSum {
 public:
  void add(double value) {
    std::uint64_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    const unsigned exponent = static_cast<unsigned>(bits >> 52) & 0x7FFu;
    std::uint64_t mantissa = bits & ((std::uint64_t{1} << 52) - 1);
    if (exponent == 0x7FFu) {
      special_ += value;
      return;
    }
    // Subnormal numbers have the exponent of the least normal ones, without the leading bit.
    mantissa |= std::uint64_t{exponent != 0} << 52;
    const unsigned position = exponent - (exponent != 0);
    const unsigned shift = position % 32;
    const std::uint64_t low = mantissa << shift, high = shift ? mantissa >> (64 - shift) : 0;
    const std::int64_t negative = -static_cast<std::int64_t>(bits >> 63);
    const auto with_sign = [&](std::uint64_t digit) {
      return (static_cast<std::int64_t>(digit) ^ negative) - negative;
    };
    std::int64_t* const digits = digits_ + position / 32;
    digits[0] += with_sign(low & kMask);
    digits[1] += with_sign(low >> 32);
    digits[2] += with_sign(high);
    if (++added_ == kMostAdded) carry();
  }

  // Rounded to nearest, ties to even; infinity beyond the largest number. A zero sum is +0. Infinities and NaNs add as
  // in floating point.
  double rounded() const {
    if (special_ != 0) return special_;
    ExactSum sum = *this;
    const bool negative = sum.carry() < 0;
    if (negative) {
      for (std::int64_t& digit : sum.digits_) digit = -digit;
      sum.carry();
    }
    int top = kDigits - 1;
    while (top >= 0 && sum.digits_[top] == 0) --top;
    if (top < 0) return 0.0;
    // The three highest digits hold the 53 bits that stay, the one that decides, and more.
    const auto digit = [&](int i) { return i < 0 ? 0 : static_cast<std::uint64_t>(sum.digits_[i]); };
    const int length = 64 - __builtin_clzll(digit(top));  // 1 .. 32
    std::uint64_t kept = (digit(top) << 32 | digit(top - 1)) << (32 - length) | digit(top - 2) >> length;
    bool rest = (digit(top - 2) & ((std::uint64_t{1} << length) - 1)) != 0;
    for (int i = 0; i < top - 2 && !rest; ++i) rest = sum.digits_[i] != 0;
    // `kept` has 64 bits, of weight 2^exponent. Bits below 2^-1074 are zero.
    const int exponent = 32 * top + length - 64 - 1074;
    constexpr int kDropped = 64 - 53;
    const std::uint64_t dropped = kept & ((1u << kDropped) - 1), half = 1u << (kDropped - 1);
    kept >>= kDropped;
    kept += dropped > half || (dropped == half && (rest || (kept & 1)));
    const double magnitude = std::ldexp(static_cast<double>(kept), exponent + kDropped);
    return negative ? -magnitude : magnitude;
  }

 private:
  // Brings all digits but the last into 0 .. 2^32 - 1, and returns the sign of the sum: that of the last.
  std::int64_t carry() {
    std::int64_t carried = 0;
    for (int i = 0; i < kDigits - 1; ++i) {
      const std::int64_t digit = digits_[i] + carried;
      digits_[i] = digit & static_cast<std::int64_t>(kMask);
      carried = digit >> 32;
    }
    digits_[kDigits - 1] += carried;
    added_ = 0;
    return digits_[kDigits - 1];
  }

  static constexpr std::uint64_t kMask = 0xFFFFFFFFu;
  // 66 digits of a number, and one for the carries of as many numbers as there can be.
  static constexpr int kDigits = 67;

  std::int64_t digits_[kDigits] = {};
  double special_ = 0;
  std::uint32_t added_ = 0;
};

}  // namespace fastmerge
