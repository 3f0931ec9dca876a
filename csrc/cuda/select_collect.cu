// The one reading of whole tensors: counts and gathered values of their brackets. See select.cu.
//
// About 18 instructions per element of a bfloat16 tensor on sm_90 (SASS): 10 classify, 1 widens, 4 write out what was
// gathered.
#include <algorithm>

#include "select.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 256;
// Per multiprocessor: twice or three times those that fit at once, which are 3, or 2 with 100 KB of shared memory.
constexpr int kBlocks = 6;

// The elements of a chunk that belong to a lane: groups of 8 neighbours, 256 apart. Those beyond the end are NaN.
// `scratch` holds a word per element of the chunk.
template <class T>
__device__ void load_lane(float (&x)[kLane], const T* data, std::uint64_t begin, std::uint64_t size, bool whole,
                          unsigned lane, float* scratch) {
  data += begin;
  if (whole) {
    Raw<T> raw[kLane / kVector];
#pragma unroll
    for (int v = 0; v < kLane / kVector; ++v) raw[v] = load(data + v * 32 * kVector + lane * kVector);
#pragma unroll
    for (int v = 0; v < kLane / kVector; ++v) widen(raw[v], reinterpret_cast<float (&)[kVector]>(x[v * kVector]));
    return;
  }
  const Array array{data, sizeof(T) == 4 ? kFloat32 : std::is_same_v<T, BFloat16> ? kBFloat16 : kFloat16};
#pragma unroll 1
  for (unsigned i = 0; i < kLane; ++i) {
    const unsigned at = i / kVector * 32 * kVector + lane * kVector + i % kVector;
    scratch[i * 32 + lane] = begin + at < size ? element_at(array, at) : bit_cast<float>(kNanMagnitude);
  }
#pragma unroll
  for (int i = 0; i < kLane; ++i) x[i] = scratch[i * 32 + lane];
}

__device__ inline void load_lane(float (&x)[kLane], const Array& array, std::uint64_t begin, std::uint64_t size,
                                 unsigned lane, float* scratch) {
  // Chunks are multiples of 16 bytes, so the first address decides.
  const bool whole = begin + kWarpTile <= size && reinterpret_cast<std::uintptr_t>(array.data) % 16 == 0;
  if (array.dtype == kBFloat16) {
    load_lane(x, static_cast<const BFloat16*>(array.data), begin, size, whole, lane, scratch);
  } else if (array.dtype == kFloat16) {
    load_lane(x, static_cast<const Float16*>(array.data), begin, size, whole, lane, scratch);
  } else {
    load_lane(x, static_cast<const float*>(array.data), begin, size, whole, lane, scratch);
  }
}

// What a lane counts of a chunk, and where the next value goes that it gathers.
struct Lane {
  float above, reached, equal_low;  // > high, >= high; in float32, which leaves the integer units to the comparisons
#if defined(__CUDA_ARCH__)
  unsigned top;
#else
  std::uintptr_t top;
#endif
};
constexpr int kStep = 32 * sizeof(float);  // bytes between values of a lane: no two lanes meet in a bank

#if defined(__CUDA_ARCH__)
__device__ inline unsigned address_of(const float* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

// Ten instructions, of which five take an integer unit; the compiler's own choice is twelve and seven.
__device__ inline void take(Lane& lane, float delta, float low, float high) {
  asm volatile(
      "{.reg .pred above, reached, equal, inside; .reg .f32 magnitude;"
      "abs.f32 magnitude, %4;"
      "setp.gtu.f32 above, magnitude, %6;"
      "setp.geu.f32 reached, magnitude, %6;"
      "setp.eq.f32 equal, magnitude, %5;"
      "setp.gt.and.f32 inside, magnitude, %5, !reached;"
      "@above add.rn.f32 %0, %0, 0f3F800000;"
      "@reached add.rn.f32 %1, %1, 0f3F800000;"
      "@equal add.rn.f32 %2, %2, 0f3F800000;"
      "@inside st.shared.f32 [%3], %4;"
      "@inside add.u32 %3, %3, %7;}"
      : "+f"(lane.above), "+f"(lane.reached), "+f"(lane.equal_low), "+r"(lane.top)
      : "f"(delta), "f"(low), "f"(high), "n"(kStep)
      : "memory");
}
#else
inline std::uintptr_t address_of(const float* shared) { return reinterpret_cast<std::uintptr_t>(shared); }

inline void take(Lane& lane, float delta, float low, float high) {
  const float magnitude = fabsf(delta);
  const bool reached = !(magnitude < high);
  lane.above += !(magnitude <= high);
  lane.reached += reached;
  lane.equal_low += magnitude == low;
  if (magnitude > low && !reached) {
    *reinterpret_cast<float*>(lane.top) = delta;
    lane.top += kStep;
  }
}
#endif

// All items of one base: it is read once. Every lane keeps what it gathers in a stack of its own in shared memory, so
// that an element takes no branch and no exchange.
__global__ void __launch_bounds__(kThreads, 3) collect_kernel(const __grid_constant__ Items p) {
  __shared__ float stacks[kThreads / 32][kWarpTile];
  __shared__ float lows[kItems], highs[kItems];
  __shared__ unsigned totals[kItems][3];
  for (int i = threadIdx.x; i < p.count; i += kThreads) {
    const State& state = *p.items[i].state;
    highs[i] = bit_cast<float>(state.high);
    // Elements at the end of an empty bracket are counted once: nothing equals a NaN.
    lows[i] = bit_cast<float>(state.low < state.high ? state.low : kNanMagnitude);
    totals[i][0] = totals[i][1] = totals[i][2] = 0;
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, warps = gridDim.x * (kThreads / 32);
  float* const stack = stacks[threadIdx.x / 32];
  const std::uint64_t size = p.items[0].size;
  // Numbers of chunks fit 32 bits: no memory holds 2 ** 42 elements.
  const unsigned chunks = static_cast<unsigned>((size + kWarpTile - 1) / kWarpTile);
  for (unsigned chunk = blockIdx.x * (kThreads / 32) + threadIdx.x / 32; chunk < chunks; chunk += warps) {
    const std::uint64_t begin = std::uint64_t{chunk} * kWarpTile;
    float base[kLane] = {};
    if (p.items[0].base.data) load_lane(base, p.items[0].base, begin, size, lane, stack);
    for (int i = 0; i < p.count; ++i) {
      const Item& item = p.items[i];
      const float low = lows[i], high = highs[i];
      float x[kLane];
      load_lane(x, item.tensor, begin, size, lane, stack);
      Lane mine{0.0f, 0.0f, 0.0f, address_of(stack + lane)};
#pragma unroll
      for (int j = 0; j < kLane; ++j) take(mine, x[j] - base[j], low, high);
      const unsigned height = static_cast<unsigned>(mine.top - address_of(stack)) / kStep;
      // Two sums in one: each is at most the 1024 elements of a chunk.
      const unsigned ends = __reduce_add_sync(kAllLanes, static_cast<unsigned>(mine.above + 65536.0f * mine.reached));
      const unsigned inside = __reduce_add_sync(kAllLanes, static_cast<unsigned>(mine.equal_low) << 16 | height);
      const unsigned gathered = inside & 0xFFFF, equal_low = inside >> 16;
      const unsigned equal_high = (ends >> 16) - (ends & 0xFFFF), pool = chunk % kPools;
      Count first = 0;
      if (lane == 0) {
        if (gathered) first = atomicAdd(&item.state->used[pool], Count{gathered});
        item.records[chunk] = {static_cast<unsigned>(first), gathered, equal_high, equal_low};
        atomicAdd(&totals[i][0], ends & 0xFFFF);
        atomicAdd(&totals[i][1], equal_high);
        atomicAdd(&totals[i][2], equal_low);
      }
      first = __shfl_sync(kAllLanes, first, 0);
      if (first + gathered > item.capacity) continue;
      unsigned upto = height;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const unsigned other = __shfl_up_sync(kAllLanes, upto, step);
        if (lane >= static_cast<unsigned>(step)) upto += other;
      }
      unsigned* next = item.gathered + pool * item.capacity + first + (upto - height);
#pragma unroll 1
      for (unsigned at = 0; at < height; ++at) *next++ = bit_cast<unsigned>(fabsf(stack[at * 32 + lane]));
    }
  }
  __syncthreads();
  if (threadIdx.x < static_cast<unsigned>(p.count)) {
    State& state = *p.items[threadIdx.x].state;
    // The NaNs that stand for elements beyond the end are taken off again.
    const Count beyond = blockIdx.x == 0 ? Count{chunks} * kWarpTile - size : 0;
    atomicAdd(&state.above, totals[threadIdx.x][0] - beyond);
    atomicAdd(&state.equal_high, Count{totals[threadIdx.x][1]});
    atomicAdd(&state.equal_low, Count{totals[threadIdx.x][2]});
  }
}

}  // namespace

void launch_collect(const Items& table, const std::string& what, const Stream& stream) {
  const std::size_t needed = (table.items[0].size + kThreads * kLane - 1) / (kThreads * kLane);
  const std::size_t most = static_cast<std::size_t>(multiprocessors(stream.device)) * kBlocks;
  launch(what, stream, collect_kernel, {static_cast<unsigned>(std::min(needed, most)), kThreads}, table);
}

}  // namespace fastmerge::cuda
