// The magnitudes of a row as 16-bit keys, and buckets of these. Part of loops.h.
//
// A key is twice the high half of the bits of a magnitude, plus 1 where the low half is not zero: it orders as the
// magnitudes do, and an even key stands for one magnitude only. Differences of close bfloat16 mostly have even keys.
#pragma once

#include "loops_masks.h"
#include "simd_halves.h"

namespace fastmerge::cpu {
namespace {

// An array of zeros that begins at a cache line, so that no vector lies in two.
template <class T>
class Lines {
 public:
  explicit Lines(std::size_t size) : lines_((size * sizeof(T) + sizeof(Line) - 1) / sizeof(Line)) {}
  T* data() { return reinterpret_cast<T*>(lines_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(lines_.data()); }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  void swap(Lines& other) { lines_.swap(other.lines_); }

 private:
  struct alignas(64) Line {
    unsigned char bytes[64];
  };
  std::vector<Line> lines_;
};

constexpr std::size_t kOctave = 256;  // keys in which magnitudes double
constexpr std::uint16_t kNanKey = 2 * (kNanMagnitude >> 16) + 1;

// Of the high and low halves of deltas, whose sign is shifted out.
FASTMERGE_INLINE H keys_of(H high, H low) { return smaller(high << 1 | smaller(low, H{} + 1), H{} + kNanKey); }

// Of a pair of deltas, in the order of their elements.
template <class T>
FASTMERGE_INLINE H keys_of(F first, F second) {
  const U a = (U)first, b = (U)second;
  if constexpr (sizeof(T) == 2) return keys_of((H)(a >> 16 | (b & kHighHalf)), (H)((a & ~kHighHalf) | b << 16));
  return keys_of(odd_halves((H)a, (H)b), even_halves((H)a, (H)b));
}

// The buckets of keys: each has its own from a bottom on, which is even, so that only even buckets hold one magnitude
// each. What lies below shares bucket 1, what lies beyond the last one that. Zeros have bucket 0.
struct Scale {
  std::uint16_t bottom = 0, last = 0xFFFF;

  FASTMERGE_INLINE_MEMBER H bucket(H key) const {
    const H above = smaller(larger(key, H{} + bottom) - bottom, H{} + last);
    return larger(above, smaller(key, H{} + 1));
  }

  // Whether it does where the other one is wanted: it has the same keys, but for an octave.
  bool serves(const Scale& other) const { return bottom <= other.bottom + kOctave && other.bottom <= bottom + kOctave; }
};

// Elements that are asked for ahead of time: what is done with so many takes longer than memory does.
constexpr std::size_t kAhead = 4096;

// Writes the buckets of the deltas begin .. begin + n - 1, and zeros up to a whole vector. Returns the largest keys.
H read_buckets(std::uint16_t* buckets, const Scale& scale, Array tensor, Array base, std::size_t begin, std::size_t n) {
  H top{};
  const Scale known = scale;
  const auto add = [&](std::size_t i, H key) {
    top = larger(top, key);
    store_as(buckets + i, known.bucket(key));
  };
  std::size_t at = 0;
  const auto whole = [&](auto* type) {
    const auto* const x = static_cast<decltype(type)>(tensor.data) + begin;
    const auto* const y = static_cast<decltype(type)>(base.data) + begin;
    for (; at + kPair <= n; at += kPair) {
      __builtin_prefetch(x + at + kAhead);
      __builtin_prefetch(y + at + kAhead);
      const Pair a = load_pair(x + at), b = load_pair(y + at);
      add(at, keys_of<std::remove_pointer_t<decltype(type)>>(a.first - b.first, a.second - b.second));
    }
  };
  if (base.data && base.dtype == tensor.dtype) {
    if (base.dtype == kBFloat16) whole(static_cast<const BFloat16*>(nullptr));
    if (base.dtype == kFloat32) whole(static_cast<const float*>(nullptr));
  }
  float tile[kTile + kWidth];
  for (; at < n; at += kTile) {
    const std::size_t size = std::min(kTile, n - at);
    deltas(tile, tensor, base, begin + at, begin + at + size);
    store(tile + (size + kWidth - 1) / kWidth * kWidth, F{});
    for (std::size_t i = 0; i < size; i += kPair) add(at + i, keys_of<float>(load(tile + i), load(tile + i + kWidth)));
  }
  return top;
}

// One element.
float element(Array array, std::size_t index) {
  if (array.dtype == kFloat32) return static_cast<const float*>(array.data)[index];
  const std::uint32_t bits = static_cast<const std::uint16_t*>(array.data)[index];
  return array.dtype == kBFloat16 ? from_bfloat16<float>(bits) : from_float16<float>(bits);
}

// The magnitude of one delta, that of every NaN the same.
std::int32_t magnitude_at(Array tensor, Array base, std::size_t index) {
  const float x = element(tensor, index);
  return canonical_bits(magnitude_bits(base.data ? x - element(base, index) : x));
}

}  // namespace
}  // namespace fastmerge::cpu
