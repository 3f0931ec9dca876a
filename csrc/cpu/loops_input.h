// Reading and writing: tensors of any dtype as float32 tiles. Part of loops.h.
#pragma once

#include "isa.h"
#include "simd_lanes.h"

namespace fastmerge::cpu {
namespace {

constexpr std::size_t whole_pairs(std::size_t n) { return n / kPair * kPair; }
constexpr std::size_t padded(std::size_t n) { return whole_pairs(n + kPair - 1); }

// Calls f with a null pointer of the element type of `dtype`.
template <class Function>
FASTMERGE_INLINE void with_type(int dtype, Function f) {
  if (dtype == kBFloat16) {
    f(static_cast<const BFloat16*>(nullptr));
  } else if (dtype == kFloat16) {
    f(static_cast<const Float16*>(nullptr));
  } else {
    f(static_cast<const float*>(nullptr));
  }
}

// Calls f with `count` as a constant where it is at most kMost, else with 0.
template <int kMost, class Function>
FASTMERGE_INLINE void with_count(std::size_t count, Function f) {
  if constexpr (kMost == 0) {
    f(std::integral_constant<int, 0>());
  } else if (count == kMost) {
    f(std::integral_constant<int, kMost>());
  } else {
    with_count<kMost - 1>(count, f);
  }
}

// dst[i] = float32 of src[i]; dst is padded with zeros to whole vectors.
template <class T>
void widen(float* dst, const T* src, std::size_t n) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    prefetch(src + i);
    store(dst + i, load(src + i));
  }
  if (i == n) return;
  T tail[kWidth] = {};
  std::memcpy(tail, src + i, (n - i) * sizeof(T));
  store(dst + i, load(tail));
}

void widen(float* dst, Array src, std::size_t begin, std::size_t n) {
  with_type(src.dtype, [&](auto* type) { widen(dst, static_cast<decltype(type)>(src.data) + begin, n); });
}

// dst[i] = src[i] rounded; src is readable in whole vectors.
template <class T>
void narrow(T* dst, const float* src, std::size_t n) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(dst + i, load(src + i));
  if (i == n) return;
  T tail[kWidth];
  store(tail, load(src + i));
  std::memcpy(dst + i, tail, (n - i) * sizeof(T));
}

void narrow(Output dst, std::size_t begin, const float* src, std::size_t n) {
  with_type(dst.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    narrow(static_cast<T*>(dst.data) + begin, src, n);
  });
}

template <class T>
void subtract(float* dst, const T* base, std::size_t n) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    prefetch(base + i);
    store(dst + i, load(dst + i) - load(base + i));
  }
  if (i == n) return;
  T tail[kWidth] = {};
  std::memcpy(tail, base + i, (n - i) * sizeof(T));
  store(dst + i, load(dst + i) - load(tail));
}

// dst[i] = x[i] - y[i]; dst is padded with zeros to whole vectors.
template <class T>
void difference(float* dst, const T* x, const T* y, std::size_t n) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    prefetch(x + i);
    prefetch(y + i);
    store(dst + i, load(x + i) - load(y + i));
  }
  if (i == n) return;
  T tails[2][kWidth] = {};
  std::memcpy(tails[0], x + i, (n - i) * sizeof(T));
  std::memcpy(tails[1], y + i, (n - i) * sizeof(T));
  store(dst + i, load(tails[0]) - load(tails[1]));
}

// The deltas of [begin, end), padded with zeros to whole vectors. Blocks stay in the first-level cache.
void deltas(float* out, Array tensor, Array base, std::size_t begin, std::size_t end) {
  if (base.data && base.dtype == tensor.dtype) {
    return with_type(base.dtype, [&](auto* type) {
      const auto* const x = static_cast<decltype(type)>(tensor.data) + begin;
      difference(out, x, static_cast<decltype(type)>(base.data) + begin, end - begin);
    });
  }
  constexpr std::size_t kBlock = 1024;
  for (std::size_t i = begin; i < end; i += kBlock) {
    const std::size_t n = std::min(kBlock, end - i);
    float* dst = out + (i - begin);
    widen(dst, tensor, i, n);
    if (!base.data) continue;
    with_type(base.dtype, [&](auto* type) { subtract(dst, static_cast<decltype(type)>(base.data) + i, n); });
  }
}

// The dtype that all tensors share, the base included, or -1.
int shared_dtype(const Tensors& inputs) {
  const int dtype = inputs.tensors[0].dtype;
  for (const Array& tensor : inputs.tensors) {
    if (tensor.dtype != dtype) return -1;
  }
  return inputs.base.data && inputs.base.dtype != dtype ? -1 : dtype;
}

// The same, the output included.
int shared_dtype(const Tensors& inputs, Output out) { return shared_dtype(inputs) == out.dtype ? out.dtype : -1; }

}  // namespace
}  // namespace fastmerge::cpu
