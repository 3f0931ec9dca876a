// Gram matrices of tensors of one dtype, aligned, sixteen at a time. A block owns a chunk and all pairs of its tensors,
// so that every element is copied to shared memory once, and on its way there while others are multiplied.
#include <cuda_pipeline.h>

#include <algorithm>

#include "gram_stages.h"

namespace fastmerge::cuda {
namespace {

// Tensors that a kernel takes, at most.
constexpr int kMost = 16;
// Shared memory that the driver keeps for itself in every block.
constexpr std::size_t kReserved = 1024;

__device__ inline float widen_one(float x) { return x; }
template <class T>
__device__ inline float widen_one(T x) {
  return widen_half<T>(x.bits);
}

// Multiplies the deltas of tensors kBegin .. kEnd - 1 with all up to themselves. Their elements are kStride apart.
template <int kBegin, int kEnd, int kStride, class T, int kSums>
__device__ inline void add_products(const T* elements, const T* base, double (&sums)[kSums]) {
  const float origin = widen_one(*base);
  double deltas[kEnd];
  static_assert(pairs_of(kEnd) - pairs_of(kBegin) <= kSums, "a sum for each pair");
  int pair = 0;
#pragma unroll
  for (int b = 0; b < kEnd; ++b) {
    // Subtracting +0, where there is no base, changes nothing.
    deltas[b] = widen_one(elements[b * kStride]) - origin;
    if (b < kBegin) continue;
#pragma unroll
    // The product is exact, so this rounds once, like the sum of the reference.
    for (int a = 0; a <= b; ++a, ++pair) sums[pair] = __fma_rn(deltas[a], deltas[b], sums[pair]);
  }
}

// Puts down the sums of kPairs pairs: lane i with lane i + 128, which the other half of the warp has, and in a second
// pass with what the first one put there. `places` is where this thread's lane has its place for the first pair.
template <int kPairs, int kLeft, int kSums>
__device__ inline void put_sums(const double (&sums)[kSums], double* places, bool add) {
  const bool upper = threadIdx.x % kWarp >= kWarp / 2;
#pragma unroll
  for (int pair = 0; pair < kPairs; pair += 2) {
    // The lower half of the warp goes on with one pair, the upper half with the next.
    const double one = sums[pair], other = pair + 1 < kPairs ? sums[pair + 1] : 0.0;
    double sum = __shfl_xor_sync(0xFFFFFFFFu, upper ? one : other, kWarp / 2);
    sum = (upper ? other : one) + sum;
    if (pair + 1 == kPairs && upper) continue;
    double& place = places[(pair + upper) * kLeft];
    place = add ? place + sum : sum;
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, Shape<T, kCount>::kBlocks)
    gram_staged_kernel(const __grid_constant__ Input<T, kCount> p) {
  using S = Shape<T, kCount>;
  T* const ring = dynamic_shared<T>();  // [stage][tensor, base][row][thread of a group]
  double* const places = dynamic_shared<double>() + S::kRing / sizeof(double);  // [pair][lane]
  const unsigned thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp;
  const unsigned group = thread / S::kPassLanes, own = pinned(thread % S::kPassLanes);

  // Threads of a group have lanes i and i + 128 in the halves of a warp. Some threads copy every tensor, others every
  // second, or fourth.
  constexpr unsigned kElements = kPiece / sizeof(T), kStride = kThreads / S::kCopying;
  const unsigned begin = pinned(thread / S::kCopying), from = pinned(thread % S::kCopying * kElements);
  const unsigned column = from % S::kPassLanes;
  const int offset = static_cast<int>(from / S::kPassLanes * kLanes + column / kWarp * (kWarp / 2) +
                                      column % kWarp / (kWarp / 2) * (kLanes / 2) + column % (kWarp / 2));
  if (p.copied == kCount) {
    // A base that does not exist is +0 in all stages.
    for (unsigned i = thread; i < S::kStages * S::kStageElements; i += kThreads) {
      ring[(i / S::kStageElements * (kCount + 1) + kCount) * S::kStageElements + i % S::kStageElements] = T{};
    }
  }
  Cursor<T, kCount> ahead{blockIdx.x};
  ahead.begin_pass(p, offset);
  unsigned slot = 0;
  const auto fetch = [&] {
    if (ahead.left > 0) {
      T* const place = ring + slot * (kCount + 1) * S::kStageElements + from;
      const std::int64_t element = ahead.element;
      if (ahead.whole || element + kElements <= p.size) {
#pragma unroll
        for (unsigned first = 0; first <= kCount; first += kStride) {
          const unsigned k = first + begin;
          if (first + kStride > kCount && k >= p.copied) continue;
          __pipeline_memcpy_async(place + k * S::kStageElements, p.tensors[k] + element, kPiece);
        }
      } else {
        // What lies beyond the tensor is +0, which changes no lane.
#pragma unroll 1
        for (unsigned i = 0; i < p.copied * kElements; ++i) {
          const unsigned k = i / kElements, j = i % kElements;
          if (k % kStride != begin) continue;
          place[k * S::kStageElements + j] = element + j < p.size ? p.tensors[k][element + j] : T{};
        }
      }
      ahead.next(p, offset);
    }
    slot = (slot + 1) % S::kStages;
    // Also where nothing was copied: stages are counted.
    __pipeline_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < S::kStages - 1; ++stage) fetch();

#pragma unroll 1
  for (std::int64_t chunk = blockIdx.x; chunk < p.chunks; chunk += gridDim.x) {
    const int stages = S::stages_of(chunk, p.size);
#pragma unroll 1
    for (int pass = 0; pass < S::kGroups; ++pass) {
      double sums[S::kSums] = {};
#pragma unroll 1
      for (int left = stages; left > 0; --left) {
        __pipeline_wait_prior(S::kStages - 2);
        // Every thread's part of this stage has come, and none reads the one before, whose place the next one takes.
        __syncthreads();
        const T* const stage = ring + (slot + 1) % S::kStages * (kCount + 1) * S::kStageElements + own;
        fetch();
#pragma unroll
        for (int i = 0; i < S::kStageRows; ++i) {
          const T* const elements = stage + i * S::kPassLanes;
          const T* const base = elements + kCount * S::kStageElements;
          if (S::kGroups == 1 || group == 0) {
            add_products<0, S::kFirst, S::kStageElements>(elements, base, sums);
          } else {
            add_products<S::kFirst, kCount, S::kStageElements>(elements, base, sums);
          }
        }
      }
      double* const place = places + own / kWarp * (kWarp / 2) + lane % (kWarp / 2);
      if (S::kGroups == 1 || group == 0) {
        put_sums<S::kFirstPairs, S::kLeft>(sums, place, pass > 0);
      } else {
        put_sums<S::kPairs - S::kFirstPairs, S::kLeft>(sums, place + S::kFirstPairs * S::kLeft, pass > 0);
      }
    }
    __syncthreads();
    // A warp adds up every eighth pair. In the end all of its lanes have the sums, and lane j writes the j-th.
    constexpr int kOwn = (S::kPairs + kWarps - 1) / kWarps;
    double sums[kOwn], mine = 0;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const unsigned pair = warp + j * kWarps;
      const double* const left = places + (pair < S::kPairs ? pair : 0) * S::kLeft + lane;
      if constexpr (S::kLeft == 128) {
        sums[j] = (left[0] + left[64]) + (left[32] + left[96]);
      } else {
        sums[j] = left[0] + left[32];
      }
    }
#pragma unroll
    for (int threads = kWarp / 2; threads > 0; threads /= 2) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) sums[j] = sums[j] + __shfl_xor_sync(0xFFFFFFFFu, sums[j], threads);
    }
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      if (lane == static_cast<unsigned>(j)) mine = sums[j];
    }
    int left = static_cast<int>(warp + lane * kWarps), right = 0;
    if (left < S::kPairs && lane < kOwn) {
      while (left > right) left -= ++right;
      const auto number = [&](int tensor) { return tensor < p.split ? p.top + tensor : p.left + tensor - p.split; };
      p.partials[chunk * pairs_of(p.count) + column_of(number(left), number(right), p.count)] = mine;
    }
  }
}

// Of tensors `top` and following, so many, and of those from `left` on.
template <class T, int kCount>
void launch_staged(double* partials, const Tensors& inputs, int top, int split, int left, const Stream& stream,
                   const std::string& what) {
  using S = Shape<T, kCount>;
  Input<T, kCount> p{};
  p.count = inputs.count();
  p.top = top;
  p.split = split;
  p.left = left;
  for (int k = 0; k < kCount; ++k) {
    p.tensors[k] = static_cast<const T*>(inputs.tensors[k < split ? top + k : left + k - split].data);
  }
  p.tensors[kCount] = static_cast<const T*>(inputs.base.data);
  p.copied = kCount + (inputs.base.data != nullptr);
  p.partials = partials;
  p.size = static_cast<std::int64_t>(inputs.size);
  p.chunks = static_cast<std::int64_t>(chunks_of(inputs.size));
  // As many blocks as run at a time.
  const std::size_t fitting = shared_of_multiprocessor(stream.device) / (S::kShared + kReserved);
  const std::size_t blocks = multiprocessors(stream.device) * std::clamp<std::size_t>(fitting, 1, S::kBlocks);
  launch(what, stream, gram_staged_kernel<T, kCount>,
         {static_cast<unsigned>(std::min(chunks_of(inputs.size), blocks)), kThreads, S::kShared}, p);
}

template <class T>
void staged(double* partials, const Tensors& inputs, const Stream& stream, const std::string& what) {
  const int count = inputs.count();
  const auto run = [&](int top, int split, int left, int number) {
    with_constant<kMost>(number - 1, [&](auto less) {
      launch_staged<T, decltype(less)::value + 1>(partials, inputs, top, split, left, stream, what);
    });
  };
  const int most = shared_of_block(stream.device) < Shape<T, kMost>::kShared ? kMost / 2 : kMost;
  if (count <= most) return run(0, count, 0, count);
  // Groups as even as can be, each with each.
  const int groups = (2 * count + most - 1) / most;
  const auto begin = [=](int group) { return group * count / groups; };
  for (int a = 0; a < groups; ++a) {
    for (int b = a + 1; b < groups; ++b) {
      const int split = begin(a + 1) - begin(a);
      run(begin(a), split, begin(b), split + begin(b + 1) - begin(b));
    }
  }
}

}  // namespace

void gram_staged(double* partials, const Tensors& inputs, const Stream& stream, const std::string& what) {
  switch (inputs.tensors[0].dtype) {
    case kBFloat16:
      return staged<BFloat16>(partials, inputs, stream, what);
    case kFloat16:
      return staged<Float16>(partials, inputs, stream, what);
    default:
      return staged<float>(partials, inputs, stream, what);
  }
}

}  // namespace fastmerge::cuda
