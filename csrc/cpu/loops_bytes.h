// Bytes as they are read and written: checksums, and numbers that are not finite. Part of loops.h.
#pragma once

#include <cstring>

// Static functions, compiled for the target that is set here; g++ reads the whole file before it defines __AVX2__.
#define XXH_INLINE_ALL
#if FASTMERGE_VECTOR_BYTES == 64
#define XXH_VECTOR 3  // XXH_AVX512
#elif FASTMERGE_VECTOR_BYTES == 32
#define XXH_VECTOR 2  // XXH_AVX2
#endif
#include "fastmerge_math.h"
#include "isa.h"
#include "third_party/xxhash/xxhash.h"

namespace fastmerge::cpu {
namespace {

void cell_digests(unsigned char* digests, const unsigned char* data, std::size_t nbytes, std::size_t step) {
  std::size_t start = 0;
  do {
    XXH64_canonical_t digest;
    XXH64_canonicalFromHash(&digest, XXH3_64bits(data + start, std::min(step, nbytes - start)));
    std::memcpy(digests, digest.digest, sizeof digest.digest);
    digests += sizeof digest.digest;
    start += step;
  } while (start < nbytes);
}

// Whether all `count` numbers of a width have an exponent that is not all ones. Int is signed: SSE2 has no other
// maximum.
template <class Int>
bool exponents_finite(const unsigned char* data, std::size_t count, Int exponent) {
  constexpr std::size_t kBlock = 4096;  // numbers between two looks
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t end = std::min(count, begin + kBlock);
    Int largest = 0;
    for (std::size_t i = begin; i < end; ++i) {
      Int bits;
      std::memcpy(&bits, data + i * sizeof bits, sizeof bits);
      bits &= exponent;
      largest = largest > bits ? largest : bits;
    }
    if (largest == exponent) return false;
  }
  return true;
}

bool all_finite(Array array, std::size_t count) {
  const unsigned char* data = static_cast<const unsigned char*>(array.data);
  if (array.dtype == kFloat32) return exponents_finite<std::int32_t>(data, count, 0x7F800000);
  return exponents_finite<std::int16_t>(data, count, array.dtype == kBFloat16 ? 0x7F80 : 0x7C00);
}

}  // namespace
}  // namespace fastmerge::cpu
