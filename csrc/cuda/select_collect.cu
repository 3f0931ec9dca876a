// The one reading of whole tensors: counts and gathered values of their brackets. See select.cu.
//
// Of a bfloat16 tensor, instructions per element on sm_90 (SASS): 8 where elements are only counted, 16 to 17 where
// those between the ends are gathered, of which 9 classify, 1 widens and 2 to 3 write out what was gathered.
#include <algorithm>

#include "select_chunks.h"
#include "split.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Per multiprocessor: a multiple of those that fit at once, which are 3 or 2.
constexpr int kBlocks = 6;

// What a lane counts of a chunk, and where the next value goes that it gathers.
struct Lane {
  float above, reached, equal_low;  // > high, >= high; in float32, which leaves the integer units to the comparisons
  Address top;
};
constexpr int kStep = 32 * sizeof(float);  // bytes between values of a lane: no two lanes meet in a bank

// Examines an element. Without kGather nothing lies between the ends of the bracket, which are one magnitude.
template <bool kGather>
__device__ inline void take(Lane& lane, float delta, float low, float high);

#if defined(__CUDA_ARCH__)
// Nine instructions, of which five take an integer unit; the compiler's own choice is eleven and seven.
template <>
__device__ inline void take<true>(Lane& lane, float delta, float low, float high) {
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

// Four, of which two take an integer unit.
template <>
__device__ inline void take<false>(Lane& lane, float delta, float, float high) {
  asm volatile(
      "{.reg .pred above, reached; .reg .f32 magnitude;"
      "abs.f32 magnitude, %2;"
      "setp.gtu.f32 above, magnitude, %3;"
      "setp.geu.f32 reached, magnitude, %3;"
      "@above add.rn.f32 %0, %0, 0f3F800000;"
      "@reached add.rn.f32 %1, %1, 0f3F800000;}"
      : "+f"(lane.above), "+f"(lane.reached)
      : "f"(delta), "f"(high));
}
#else
template <bool kGather>
inline void take(Lane& lane, float delta, float low, float high) {
  const float magnitude = fabsf(delta);
  const bool reached = !(magnitude < high);
  lane.above += !(magnitude <= high);
  lane.reached += reached;
  if (!kGather) return;
  lane.equal_low += magnitude == low;
  if (magnitude > low && !reached) {
    *reinterpret_cast<float*>(lane.top) = delta;
    lane.top += kStep;
  }
}
#endif

// All items of one base: it is read once. Every lane keeps what it gathers in a stack of its own in shared memory, so
// that an element takes no branch and no exchange.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(typename Chunks<T>::Vector) == 16 ? 3 : 2)
    collect_kernel(const __grid_constant__ Items p, unsigned first_chunk, unsigned last_chunk) {
  __shared__ float stacks[kWarps][kWarpTile];
  __shared__ unsigned totals[kItems][3];
  if (threadIdx.x < kItems) totals[threadIdx.x][0] = totals[threadIdx.x][1] = totals[threadIdx.x][2] = 0;
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, below = kept((1u << lane) - 1), warps = gridDim.x * kWarps;
  float* const stack = stacks[threadIdx.x / 32] + lane;
  const std::uint64_t size = p.items[0].size;
  // Lane i knows the bracket of item i, and what was counted of it.
  float low_of_mine = 0.0f, high_of_mine = 0.0f;
  unsigned all_above = 0, all_equal_high = 0, all_equal_low = 0;
  if (lane < static_cast<unsigned>(p.count)) {
    const State& state = *p.items[lane].state;
    high_of_mine = bit_cast<float>(state.high);
    // A NaN where the ends are one magnitude, so that nothing lies between them.
    low_of_mine = bit_cast<float>(state.low < state.high ? state.low : kNanMagnitude);
  }
  const bool based = p.items[0].base.data != nullptr;
  const Array& last = p.items[p.count - 1].tensor;
  const Array& leading = based ? p.items[0].base : last;
  float base[kLane] = {};
  Chunks<T> chunks(size);
  typename Chunks<T>::Vector raw[kVectors];
  unsigned chunk = first_chunk + blockIdx.x * kWarps + threadIdx.x / 32;
  if (chunk < last_chunk) chunks.fetch(leading, chunk);
  for (; chunk < last_chunk; chunk += warps) {
    if (based) {
      chunks.get(raw);
      chunks.fetch(last, chunk);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        chunks.widen(v, raw, reinterpret_cast<float (&)[kVector]>(base[v * kVector]));
      }
    }
    for (int i = p.count - 1; i >= 0; --i) {
      const Item& item = p.items[i];
      const float low = __shfl_sync(kAllLanes, low_of_mine, i), high = __shfl_sync(kAllLanes, high_of_mine, i);
      chunks.get(raw);
      const unsigned next = i > 0 ? chunk : chunk + warps;
      if (next < last_chunk) chunks.fetch(i > 0 ? p.items[i - 1].tensor : leading, next);
      Lane mine{0.0f, 0.0f, 0.0f, address_of(stack)};
      const auto examine = [&](auto gather) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          float x[kVector];
          chunks.widen(v, raw, x);
#pragma unroll
          for (int j = 0; j < kVector; ++j) take<gather.value>(mine, x[j] - base[v * kVector + j], low, high);
        }
      };
      const bool gathers = low == low;
      gathers ? examine(std::true_type{}) : examine(std::false_type{});
      // Two sums in one: each is at most the 1024 elements of a chunk.
      const unsigned ends = __reduce_add_sync(kAllLanes, static_cast<unsigned>(mine.above + 65536.0f * mine.reached));
      const unsigned above = ends & 0xFFFF, equal_high = (ends >> 16) - above;
      const unsigned pool = chunk % kPools;
      unsigned gathered = 0, equal_low = 0;
      int height = 0;
      Count first = 0;
      if (gathers) {
        height = static_cast<int>(mine.top - address_of(stack)) / kStep;
        const unsigned inside = __reduce_add_sync(kAllLanes, static_cast<unsigned>(mine.equal_low) << 16 | height);
        gathered = inside & 0xFFFF;
        equal_low = inside >> 16;
        if (lane == 0 && gathered) first = atomicAdd(&item.state->used[pool], Count{gathered});
      }
      if (lane == 0) item.records[chunk] = {static_cast<unsigned>(first), gathered, equal_high, equal_low};
      if (lane == static_cast<unsigned>(i)) {
        all_above += above;
        all_equal_high += equal_high;
        all_equal_low += equal_low;
      }
      if (gathered == 0) continue;
      first = __shfl_sync(kAllLanes, first, 0);
      if (first + gathered > item.capacity) continue;
      // The first value of each lane, then the second of those that have one, and so on.
      unsigned* place = item.gathered + pool * item.capacity + first;
      const float* value = stack;
#pragma unroll 1
      for (unsigned left = gathered; left > 0; value += 32, --height) {
        const unsigned active = __ballot_sync(kAllLanes, height > 0);
        const float magnitude = fabsf(*value);
        if (height > 0) place[__popc(active & below)] = bit_cast<unsigned>(magnitude);
        place += __popc(active);
        left -= __popc(active);
      }
    }
  }
  if (lane < static_cast<unsigned>(p.count)) {
    atomicAdd(&totals[lane][0], all_above);
    atomicAdd(&totals[lane][1], all_equal_high);
    atomicAdd(&totals[lane][2], all_equal_low);
  }
  __syncthreads();
  if (threadIdx.x < static_cast<unsigned>(p.count)) {
    State& state = *p.items[threadIdx.x].state;
    // The NaNs that stand for elements beyond the end are taken off again.
    const std::uint64_t end = std::uint64_t{last_chunk} * kWarpTile;
    const Count beyond = blockIdx.x == 0 && end > size ? end - size : 0;
    atomicAdd(&state.above, totals[threadIdx.x][0] - beyond);
    atomicAdd(&state.equal_high, Count{totals[threadIdx.x][1]});
    atomicAdd(&state.equal_low, Count{totals[threadIdx.x][2]});
  }
}

template <class T>
void collect(const Items& table, std::uint64_t first, std::uint64_t last, const std::string& what,
             const Stream& stream) {
  if (first == last) return;
  const unsigned most = static_cast<unsigned>(multiprocessors(stream.device)) * kBlocks;
  // Numbers of chunks fit 32 bits: no memory holds 2 ** 42 elements.
  launch(what, stream, collect_kernel<T>,
         {std::min(blocks_of(last - first, kWarps), most), kThreads, kWarps * Chunks<T>::kShared}, table,
         static_cast<unsigned>(first), static_cast<unsigned>(last));
}

}  // namespace

void launch_collect(const Items& table, const std::string& what, const Stream& stream) {
  const std::uint64_t size = table.items[0].size;
  const Array first = table.items[0].tensor, base = table.items[0].base;
  const auto fits = [&](const Array& array) { return array.dtype == first.dtype && aligned(array.data); };
  const bool uniform = (!base.data || fits(base)) && std::all_of(table.items, table.items + table.count,
                                                                 [&](const Item& i) { return fits(i.tensor); });
  const std::uint64_t whole = uniform ? size / kWarpTile : 0;
  if (first.dtype == kBFloat16) {
    collect<BFloat16>(table, 0, whole, what, stream);
  } else if (first.dtype == kFloat16) {
    collect<Float16>(table, 0, whole, what, stream);
  } else {
    collect<float>(table, 0, whole, what, stream);
  }
  // All chunks of tensors that differ, and else the last one where it is not whole.
  collect<void>(table, whole, (size + kWarpTile - 1) / kWarpTile, what, stream);
}

}  // namespace fastmerge::cuda
