// Stands in for the CUDA toolkit's header of this name, so that g++ compiles csrc/cuda/*.cu and the CPU runs every line
// of the kernels. Blocks run one after the other; the threads of a block are fibers that change places at barriers and
// exchanges: in the order of their numbers, or at random (emulator.h). races.cpp checks their accesses to memory. Only
// what the kernels use is here. Not seen: anything about speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) alignas(bytes)
// Static inside a function; `extern __shared__` names the dynamic memory that emulator.cpp defines.
#define __shared__ thread_local

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern thread_local uint3 threadIdx, blockIdx;
extern thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {

void run(dim3 grid, dim3 block, std::size_t shared, const std::function<void()>& body);
void wait_for_block();
// Gives a value to the lanes of a mask; returns the values of all 32 once each lane of the mask has given its own.
const std::uint64_t* exchange(unsigned mask, std::uint64_t value);
int lane();
void fence();

template <class T>
std::uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8, "too large for an exchange");
  std::uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T unpack(std::uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class T, class Select>
T shuffle(unsigned mask, T value, int width, Select select) {
  const std::uint64_t* values = exchange(mask, pack(value));
  const int first = lane() / width * width, source = select(lane() - first);
  return source < 0 || source >= width ? value : unpack<T>(values[first + source]);
}

}  // namespace emulator

// ---- synchronization ----

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulator::exchange(mask, 0); }
inline void __threadfence() { emulator::fence(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int) { return source & (width - 1); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int lane) { return lane ^ bits; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int lane) { return lane + static_cast<int>(delta); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle(mask, value, width, [=](int lane) { return lane - static_cast<int>(delta); });
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const std::uint64_t* values = emulator::exchange(mask, predicate != 0);
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (mask >> i & 1u) && values[i] ? 1u << i : 0u;
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const std::uint64_t* values = emulator::exchange(mask, emulator::pack(value));
  unsigned result = 0;
  for (int i = 0; i < 32; ++i) result |= (mask >> i & 1u) && values[i] == emulator::pack(value) ? 1u << i : 0u;
  return result;
}
template <class T, class Combine>
T fastmerge_emulated_reduce(unsigned mask, T value, Combine combine) {
  const std::uint64_t* values = emulator::exchange(mask, emulator::pack(value));
  bool first = true;
  T result{};
  for (int i = 0; i < 32; ++i) {
    if (!(mask >> i & 1u)) continue;
    const T other = emulator::unpack<T>(values[i]);
    result = first ? other : combine(result, other);
    first = false;
  }
  return result;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return fastmerge_emulated_reduce(mask, value, [](T a, T b) { return a + b; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return fastmerge_emulated_reduce(mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return fastmerge_emulated_reduce(mask, value, [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_or_sync(unsigned mask, T value) {
  return fastmerge_emulated_reduce(mask, value, [](T a, T b) { return a | b; });
}

// ---- memory ----

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

template <class T>
T atomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* address, T value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

// ---- arithmetic ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t{a} * b >> 32); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((std::uint64_t{high} << 32 | low) >> (shift & 31u));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i) & 0xFu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (choice & 7u))) & 0xFFu;
    if (choice & 8u) byte = byte & 0x80u ? 0xFFu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// ---- runtime ----

using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719;
struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* address, int value, std::size_t bytes, cudaStream_t stream);
const char* cudaGetErrorString(cudaError_t error);
// Checks a launch as a GPU with 227 KB of shared memory would, and runs it.
cudaError_t fastmerge_emulated_launch(const cudaLaunchConfig_t& config, const void* kernel,
                                      const std::function<void()>& body);
void fastmerge_emulated_allow_shared(const void* kernel, std::size_t bytes);

template <class... Expected, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given&&... arguments) {
  return fastmerge_emulated_launch(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); });
}
template <class... Arguments>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Arguments...), cudaFuncAttribute, int bytes) {
  fastmerge_emulated_allow_shared(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(bytes));
  return cudaSuccess;
}
