// How a warp reads chunks of tensors, one after the other: the next one comes while the one before is examined.
#pragma once

#include <cuda_pipeline.h>

#include "select.h"

namespace fastmerge::cuda {

// ---- shared memory by its own addresses, which take one register ----

#if defined(__CUDA_ARCH__)
using Address = unsigned;

__device__ inline Address address_of(const void* shared) {
  return static_cast<Address>(__cvta_generic_to_shared(shared));
}
__device__ inline uint4 words_at(Address address) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address)
               : "memory");
  return words;
}
__device__ inline void copy_words(Address to, const char* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
#else
using Address = std::uintptr_t;

__device__ inline Address address_of(const void* shared) { return reinterpret_cast<Address>(shared); }
__device__ inline uint4 words_at(Address address) { return *reinterpret_cast<const uint4*>(address); }
__device__ inline void copy_words(Address to, const char* from) {
  __pipeline_memcpy_async(reinterpret_cast<void*>(to), from, 16);
}
#endif

// The value, in a register: the compiler would compute it again for every chunk.
template <class T>
__device__ T kept(T value) {
  return __shfl_sync(kAllLanes, value, threadIdx.x % 32);
}

constexpr int kVectors = kLane / kVector;  // of a lane in a chunk

// T: of all tensors, whose chunks are whole and aligned. A lane copies what it reads itself, so that no other one is
// waited for: every 32nd piece of 16 bytes, in an order that is the same for all tensors.
template <class T>
class Chunks {
  static constexpr int kPiece = 32 * 16, kBytes = kWarpTile * sizeof(T);

 public:
  using Vector = Raw<T>;
  static constexpr std::size_t kShared = kBytes;  // of a warp

  __device__ explicit Chunks(std::uint64_t) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    place_ = kept(address_of(dynamic_shared<char>() + warp * kBytes + lane * 16));
  }
  // Begins to copy a chunk, which get() waits for. What came before it must have been got.
  __device__ void fetch(const Array& array, unsigned chunk) {
    const char* const from =
        static_cast<const char*>(array.data) + std::uint64_t{chunk} * kBytes + threadIdx.x % 32 * 16;
#pragma unroll
    for (int at = 0; at < kBytes; at += kPiece) copy_words(place_ + at, from + at);
    __pipeline_commit();
  }
  __device__ void get(Vector (&raw)[kVectors]) {
    __pipeline_wait_prior(0);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (sizeof(T) == 4) {
        raw[v] = {words_at(place_ + 2 * v * kPiece), words_at(place_ + (2 * v + 1) * kPiece)};
      } else {
        raw[v] = {words_at(place_ + v * kPiece)};
      }
    }
  }
  // The elements of vector v.
  __device__ void widen(int v, const Vector (&raw)[kVectors], float (&x)[kVector]) const { cuda::widen(raw[v], x); }

 private:
  Address place_;
};

// Of any tensors. Nothing comes ahead; elements beyond the end are NaN.
template <>
class Chunks<void> {
 public:
  using Vector = AnyRaw;
  static constexpr std::size_t kShared = 0;

  __device__ explicit Chunks(std::uint64_t size) : size_(static_cast<std::int64_t>(size)) {}

  __device__ void fetch(const Array& array, unsigned chunk) {
    const bool aligned = reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0;
    next_ = {array.data, static_cast<std::uint8_t>(array.dtype), aligned};
    next_begin_ = std::int64_t{chunk} * kWarpTile + threadIdx.x % 32 * kVector;
  }
  __device__ void get(Vector (&raw)[kVectors]) {
    begin_ = next_begin_;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) raw[v] = load_any(next_, element(v), range_at(element(v), size_));
  }
  __device__ void widen(int v, const Vector (&raw)[kVectors], float (&x)[kVector]) const {
    cuda::widen(raw[v], x);
    const Range range = range_at(element(v), size_);
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[j] = range.has(j) ? x[j] : bit_cast<float>(kNanMagnitude);
  }

 private:
  __device__ std::int64_t element(int v) const { return begin_ + v * 32 * kVector; }

  Source next_{};
  std::int64_t next_begin_ = 0, begin_ = 0, size_;
};

}  // namespace fastmerge::cuda
