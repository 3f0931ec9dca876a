// Eight elements at a time: how kernels load, widen, round and store them.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "device.h"
#include "fastmerge_math.h"

namespace fastmerge::cuda {

constexpr int kVector = 8;

// ---- two 16-bit numbers in a word ----

// The conversion instructions round and widen as fastmerge_math.h does, except that a NaN has another payload. They
// cost one instruction for two numbers instead of five for one.
template <class T>
__device__ inline unsigned narrow_pair(float low, float high);

template <>
__device__ inline unsigned narrow_pair<BFloat16>(float low, float high) {
#if defined(__CUDA_ARCH__)
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_bfloat16_high(low) >> 16 | (to_bfloat16_high(high) & 0xFFFF0000u);
#endif
}

template <>
__device__ inline unsigned narrow_pair<Float16>(float low, float high) {
#if defined(__CUDA_ARCH__)
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return to_float16(low) | to_float16(high) << 16;
#endif
}

template <class T>
__device__ inline float widen_half(unsigned bits);

template <>
__device__ inline float widen_half<BFloat16>(unsigned bits) {
  return from_bfloat16<float>(bits);
}

template <>
__device__ inline float widen_half<Float16>(unsigned bits) {
#if defined(__CUDA_ARCH__)
  float x;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(x) : "r"(bits));
  return x;
#else
  return from_float16<float>(bits);
#endif
}

// The number in the high half of a word. Moved to the low half first, a float16 would cost an instruction more.
template <class T>
__device__ inline float widen_high(unsigned word) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Float16>) {
    float x;
    asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high;}" : "=f"(x) : "r"(word));
    return x;
  }
#endif
  return widen_half<T>(word >> 16);
}

// One element of a tensor of any dtype.
__device__ inline float element_at(const Array& array, std::uint64_t i) {
  if (array.dtype == kFloat32) return static_cast<const float*>(array.data)[i];
  const unsigned bits = static_cast<const std::uint16_t*>(array.data)[i];
  return array.dtype == kBFloat16 ? widen_half<BFloat16>(bits) : widen_half<Float16>(bits);
}

// ---- whole vectors of one dtype, aligned to 16 bytes ----

// As loaded: widened only when it is used, so that several loads are in flight.
template <class T>
struct Raw {
  uint4 words;
};

template <>
struct Raw<float> {
  uint4 words, more;
};

template <class T>
__device__ inline Raw<T> load(const T* address) {
  const uint4* const words = reinterpret_cast<const uint4*>(address);
  if constexpr (sizeof(T) == 4) {
    return {words[0], words[1]};
  } else {
    return {words[0]};
  }
}

template <class T>
__device__ inline void widen(const Raw<T>& raw, float (&x)[kVector]) {
  const unsigned words[4] = {raw.words.x, raw.words.y, raw.words.z, raw.words.w};
  if constexpr (sizeof(T) == 4) {
    const unsigned more[4] = {raw.more.x, raw.more.y, raw.more.z, raw.more.w};
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[j] = bit_cast<float>(j < 4 ? words[j & 3] : more[j & 3]);
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[j] = j & 1 ? widen_high<T>(words[j / 2]) : widen_half<T>(words[j / 2]);
  }
}

template <class T>
__device__ inline Raw<T> narrow(const float (&x)[kVector]) {
  if constexpr (sizeof(T) == 4) {
    const auto word = [&](int j) { return bit_cast<unsigned>(x[j]); };
    return {make_uint4(word(0), word(1), word(2), word(3)), make_uint4(word(4), word(5), word(6), word(7))};
  } else {
    return {make_uint4(narrow_pair<T>(x[0], x[1]), narrow_pair<T>(x[2], x[3]), narrow_pair<T>(x[4], x[5]),
                       narrow_pair<T>(x[6], x[7]))};
  }
}

template <class T>
__device__ inline void store(T* address, const Raw<T>& raw) {
  uint4* const words = reinterpret_cast<uint4*>(address);
  words[0] = raw.words;
  if constexpr (sizeof(T) == 4) words[1] = raw.more;
}

// ---- vectors of any dtype and alignment, some of whose elements may lie outside the tensor ----

// A tensor of a dtype that is known at run time. `shift` elements before its first one begins vector 0; `aligned` says
// that every vector is aligned to 16 bytes.
struct Source {
  const void* data;
  std::uint8_t dtype;
  bool aligned;
};

// Which elements of a vector exist: first .. last - 1.
struct Range {
  int first, last;

  __device__ bool whole() const { return first == 0 && last == kVector; }
  __device__ bool has(int j) const { return j >= first && j < last; }
};

__device__ inline Range range_at(std::int64_t element, std::int64_t size) {
  const std::int64_t left = size - element;
  return {element < 0 ? static_cast<int>(-element) : 0, left < kVector ? static_cast<int>(left) : kVector};
}

struct AnyRaw {
  uint4 words, more;
  int dtype;
};

// The elements that do not exist are +0.
__device__ inline AnyRaw load_any(const Source& source, std::int64_t element, Range range) {
  AnyRaw raw{make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0), source.dtype};
  if (source.aligned && range.whole()) {
    if (source.dtype == kFloat32) {
      const uint4* const words = reinterpret_cast<const uint4*>(static_cast<const float*>(source.data) + element);
      raw.words = words[0];
      raw.more = words[1];
    } else {
      raw.words = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(source.data) + element);
    }
    return raw;
  }
  unsigned words[kVector] = {};
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (!range.has(j)) continue;
    if (source.dtype == kFloat32) {
      words[j] = static_cast<const std::uint32_t*>(source.data)[element + j];
    } else {
      words[j / 2] |= unsigned{static_cast<const std::uint16_t*>(source.data)[element + j]} << 16 * (j & 1);
    }
  }
  raw.words = make_uint4(words[0], words[1], words[2], words[3]);
  raw.more = make_uint4(words[4], words[5], words[6], words[7]);
  return raw;
}

__device__ inline void widen(const AnyRaw& raw, float (&x)[kVector]) {
  if (raw.dtype == kFloat32) {
    widen(Raw<float>{raw.words, raw.more}, x);
  } else if (raw.dtype == kBFloat16) {
    widen(Raw<BFloat16>{raw.words}, x);
  } else {
    widen(Raw<Float16>{raw.words}, x);
  }
}

// ---- vectors of a dtype T; or of any, where T is void ----

template <class T>
struct Loaded {
  using Type = Raw<T>;
};
template <>
struct Loaded<void> {
  using Type = AnyRaw;
};

// The vector from `element` on. Of a dtype T all vectors are aligned, and only the last one may end beyond the tensor.
template <class T>
__device__ inline typename Loaded<T>::Type load_vector(const Source& source, std::int64_t element, std::int64_t size) {
  if constexpr (std::is_void_v<T>) {
    return load_any(source, element, range_at(element, size));
  } else {
    if (element + kVector <= size) return load(static_cast<const T*>(source.data) + element);
    const AnyRaw raw = load_any(source, element, range_at(element, size));
    if constexpr (sizeof(T) == 4) {
      return {raw.words, raw.more};
    } else {
      return {raw.words};
    }
  }
}

// Calls run with a null pointer to the dtype of all tensors, where vectors of all of them are aligned, else to void.
template <class Run>
void with_dtype(const Tensors& inputs, Run run) {
  const int dtype = inputs.tensors[0].dtype;
  const auto fits = [=](Array array) {
    return !array.data || (array.dtype == dtype && reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0);
  };
  bool all = fits(inputs.base);
  for (const Array& array : inputs.tensors) all = all && fits(array);
  if (!all) return run(static_cast<void*>(nullptr));
  if (dtype == kBFloat16) return run(static_cast<BFloat16*>(nullptr));
  if (dtype == kFloat16) return run(static_cast<Float16*>(nullptr));
  run(static_cast<float*>(nullptr));
}

template <class T>
__device__ inline void store_part(void* data, std::int64_t element, Range range, bool aligned, const Raw<T>& raw) {
  T* const address = static_cast<T*>(data) + element;
  if (aligned && range.whole()) return store(address, raw);
  const unsigned words[4] = {raw.words.x, raw.words.y, raw.words.z, raw.words.w};
  if constexpr (sizeof(T) == 4) {
    const unsigned more[4] = {raw.more.x, raw.more.y, raw.more.z, raw.more.w};
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (range.has(j)) address[j] = bit_cast<float>(j < 4 ? words[j & 3] : more[j & 3]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (range.has(j)) address[j] = {static_cast<std::uint16_t>(words[j / 2] >> 16 * (j & 1))};
    }
  }
}

__device__ inline void store_any(const Source& out, std::int64_t element, Range range, const float (&x)[kVector]) {
  void* const data = const_cast<void*>(out.data);
  if (out.dtype == kFloat32) {
    store_part(data, element, range, out.aligned, narrow<float>(x));
  } else if (out.dtype == kBFloat16) {
    store_part(data, element, range, out.aligned, narrow<BFloat16>(x));
  } else {
    store_part(data, element, range, out.aligned, narrow<Float16>(x));
  }
}

}  // namespace fastmerge::cuda
