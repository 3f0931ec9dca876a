// Histograms of magnitudes, and counts of one magnitude per chunk of the grid.
#include <algorithm>

#include "split.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHistogramThreads = 512;
// Level 0 counts magnitudes below 2 in shared memory: 64 KB that every GPU has, and nearly all deltas. The rest goes to
// global memory one by one.
constexpr int kNear = 1 << 14;
constexpr int kBins[2] = {1 << 15, 1 << 16};

using Count = unsigned long long;

struct Counted {
  Array tensors[kMaxTensors];
  std::int64_t numbers[kMaxTensors];  // prefixes or thresholds
  Array base;
  std::int64_t size;
  int count;
  bool aligned[kMaxTensors + 1];  // of the tensors, then of the base
};

// The magnitudes of 8 neighbours; -1 beyond the end.
__device__ inline void load_magnitudes(int (&bits)[kVector], const Counted& p, int k, std::int64_t element) {
  const Range range = range_at(element, p.size);
  const auto any = [&](Array array, bool aligned) {
    return load_any({array.data, static_cast<std::uint8_t>(array.dtype), aligned}, element, range);
  };
  const AnyRaw raw = any(p.tensors[k], p.aligned[k]);
  float x[kVector], base[kVector] = {};
  if (p.base.data) widen(any(p.base, p.aligned[kMaxTensors]), base);
  widen(raw, x);
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    bits[j] = range.has(j) ? canonical_bits(magnitude_bits(x[j] - base[j])) : -1;
  }
}

// The first two bins that a thread meets are counted in registers: deltas of bfloat16 weights often repeat one
// magnitude, and then most threads of a warp would wait for the same counter.
struct Frequent {
  int bins[2] = {-1, -1};
  unsigned counts[2] = {};

  __device__ bool take(int bin) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (bins[i] < 0) bins[i] = bin;
      if (bins[i] == bin) {
        ++counts[i];
        return true;
      }
    }
    return false;
  }
};

// Blocks of all tensors take turns, so that those that run together read the same part of the base.
template <int kLevel>
__global__ void __launch_bounds__(kHistogramThreads, 2)
    histogram_kernel(const __grid_constant__ Counted p, Count* counts) {
  unsigned* const near = dynamic_shared<unsigned>();
  const int k = static_cast<int>(blockIdx.x % p.count);
  Count* const mine = counts + std::int64_t{k} * kBins[kLevel];
  if (kLevel == 0) {
    for (int i = threadIdx.x; i < kNear; i += kHistogramThreads) near[i] = 0;
    __syncthreads();
  }
  const auto add = [&](int bin, unsigned count) {
    if (kLevel == 0 && bin < kNear) {
      atomicAdd(&near[bin], count);
    } else {
      atomicAdd(&mine[bin], Count{count});
    }
  };
  Frequent frequent;
  const std::int64_t step = std::int64_t{gridDim.x / p.count} * kHistogramThreads * kVector;
  std::int64_t element = (std::int64_t{blockIdx.x / p.count} * kHistogramThreads + threadIdx.x) * kVector;
  for (; element < p.size; element += step) {
    int bits[kVector];
    load_magnitudes(bits, p, k, element);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const bool counted = kLevel == 0 ? bits[j] >= 0 : bits[j] >> 16 == p.numbers[k];
      const int bin = kLevel == 0 ? bits[j] >> 16 : bits[j] & 0xFFFF;
      if (counted && !frequent.take(bin)) add(bin, 1);
    }
  }
  for (int i = 0; i < 2; ++i) {
    if (frequent.counts[i]) add(frequent.bins[i], frequent.counts[i]);
  }
  if (kLevel == 0) {
    __syncthreads();
    for (int i = threadIdx.x; i < kNear; i += kHistogramThreads) {
      if (near[i]) atomicAdd(&mine[i], Count{near[i]});
    }
  }
}

struct Compared {
  Source tensors[kMaxTensors];
  std::int64_t numbers[kMaxTensors];
  Source base;
  std::int64_t size, chunks;
  unsigned count;
};

// A block per chunk of the grid and tensor. T: of all tensors; void for any.
template <class T>
__global__ void __launch_bounds__(kThreads)
    equal_counts_kernel(const __grid_constant__ Compared p, std::int64_t* counts) {
  __shared__ unsigned found;
  const std::int64_t chunk = blockIdx.x / p.count;
  const unsigned k = blockIdx.x % p.count;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  unsigned equal = 0;
#pragma unroll 4
  for (int v = 0; v < kGrid / (kThreads * kVector); ++v) {
    const std::int64_t element = chunk * kGrid + (v * kThreads + threadIdx.x) * kVector;
    if (element >= p.size) break;
    float x[kVector], base[kVector] = {};
    if (p.base.data) widen(load_vector<T>(p.base, element, p.size), base);
    widen(load_vector<T>(p.tensors[k], element, p.size), x);
    const std::int64_t left = p.size - element;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      equal += j < left && canonical_bits(magnitude_bits(x[j] - base[j])) == p.numbers[k];
    }
  }
  equal = __reduce_add_sync(0xFFFFFFFFu, equal);
  if (threadIdx.x % 32 == 0) atomicAdd(&found, equal);
  __syncthreads();
  if (threadIdx.x == 0) counts[k * p.chunks + chunk] = found;
}

Counted parameters(const Tensors& inputs, const std::vector<std::int64_t>& numbers) {
  Counted p{};
  const auto aligned = [](Array array) { return reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0; };
  for (int k = 0; k < inputs.count(); ++k) {
    p.tensors[k] = inputs.tensors[k];
    p.aligned[k] = aligned(inputs.tensors[k]);
    p.numbers[k] = numbers.empty() ? 0 : numbers[k];
  }
  p.base = inputs.base;
  p.aligned[kMaxTensors] = aligned(inputs.base);
  p.size = static_cast<std::int64_t>(inputs.size);
  p.count = inputs.count();
  return p;
}

std::string describe(const char* operation, const Tensors& inputs) {
  return std::string(operation) + " of " + std::to_string(inputs.count()) + " tensors, " + std::to_string(inputs.size) +
         " elements";
}

}  // namespace

void magnitude_histogram(std::int64_t* counts, const Tensors& inputs, int level,
                         const std::vector<std::int64_t>& prefixes, const Stream& stream) {
  if (inputs.size == 0) return;
  // As many blocks as fit at once: each brings its own counts to the sum.
  const std::size_t fitting = std::max(1, 2 * multiprocessors(stream.device) / inputs.count());
  const std::size_t needed = (inputs.size + kHistogramThreads * kVector - 1) / (kHistogramThreads * kVector);
  const unsigned blocks = static_cast<unsigned>(std::min(fitting, needed)) * inputs.count();
  const std::size_t shared = level == 0 ? kNear * sizeof(unsigned) : 0;
  launch(describe("magnitude_histogram", inputs), stream, level == 0 ? histogram_kernel<0> : histogram_kernel<1>,
         {blocks, kHistogramThreads, shared}, parameters(inputs, prefixes), reinterpret_cast<Count*>(counts));
}

void equal_counts(std::int64_t* counts, const Tensors& inputs, const std::vector<std::int64_t>& thresholds,
                  const Stream& stream) {
  const std::int64_t chunks = (static_cast<std::int64_t>(inputs.size) + kGrid - 1) / kGrid;
  if (chunks == 0) return;
  Compared p{};
  for (int k = 0; k < inputs.count(); ++k) {
    p.tensors[k] = source(inputs.tensors[k], 0);
    p.numbers[k] = thresholds[k];
  }
  p.base = source(inputs.base, 0);
  p.size = static_cast<std::int64_t>(inputs.size);
  p.chunks = chunks;
  p.count = static_cast<unsigned>(inputs.count());
  with_dtype(inputs, [&](auto* dtype) {
    using T = std::remove_pointer_t<decltype(dtype)>;
    launch(describe("equal_counts", inputs), stream, equal_counts_kernel<T>,
           {static_cast<unsigned>(chunks) * p.count, kThreads}, p, counts);
  });
}

}  // namespace fastmerge::cuda
