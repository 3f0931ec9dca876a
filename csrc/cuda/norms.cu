// Norms of deltas, whole and over what a keep rule keeps, in float64 over the reduction grid. A warp owns a chunk of
// all deltas, or of as many as its registers hold, so that the base is read and widened once.
#include <cuda_pipeline.h>

#include <algorithm>
#include <limits>

#include "grid.h"
#include "keep.h"

namespace fastmerge::cuda {
namespace {

constexpr int kWarps = 2;
// Deltas whose sums stay in registers: 32 of them each.
constexpr int kMost = 3;
// For rules of any kind; where all are of one kind, its code alone leaves registers for the sums of several deltas.
constexpr int kAnyKind = -1;
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr double kFinite = std::numeric_limits<double>::max();

template <int kModels>
struct Input {
  Source tensors[kModels];
  KeepRule rules[kModels];
  Source base;
  double* partials;  // of the first of these models
  std::int64_t size, chunks, columns;
};

// The vectors of a thread, row by row. Those of the next rows are on their way to places in shared memory that are its
// own, so that no thread waits for another.
constexpr int kStages = 4;

template <class T, int kTensors>
class Coming {
  static constexpr int kPieces = sizeof(Raw<T>) / sizeof(uint4);

 public:
  static constexpr std::size_t kShared = sizeof(uint4) * kStages * kTensors * kPieces * kWarps * kWarp;

  __device__ Coming() : places_(dynamic_shared<uint4>() + threadIdx.x) {}

  // Asks for a row more, or for none. From then on `take` gives the row that was asked for kStages - 1 calls before.
  // tensor_of: of the last one, the base, there may be none.
  template <class TensorOf>
  __device__ void ask(bool any, std::int64_t element, std::int64_t size, TensorOf tensor_of) {
    const auto there = [&](int k) { return k < kTensors - 1 || tensor_of(k).data != nullptr; };
    const auto from = [&](int k) { return static_cast<const T*>(tensor_of(k).data) + element; };
    if (any && element + kVector <= size) {
#pragma unroll
      for (int k = 0; k < kTensors; ++k) {
        if (!there(k)) continue;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
          __pipeline_memcpy_async(place(k, i), reinterpret_cast<const uint4*>(from(k)) + i, sizeof(uint4));
        }
      }
    } else if (any) {
      // The last vector of a tensor, one element after another.
      constexpr int kEach = kVector / kPieces;
#pragma unroll 1
      for (int i = 0; i < kTensors * kVector; ++i) {
        const int k = i / kVector, j = i % kVector;
        if (there(k)) reinterpret_cast<T*>(place(k, j / kEach))[j % kEach] = element + j < size ? from(k)[j] : T{};
      }
    }
    // Also where nothing was copied: rows are counted.
    __pipeline_commit();
    stage_ = (stage_ + 1) % kStages;
    __pipeline_wait_prior(kStages - 1);
  }

  __device__ void take(int tensor, const Source&, std::int64_t, std::int64_t, float (&x)[kVector]) const {
    if constexpr (kPieces == 2) {
      widen(Raw<T>{*place(tensor, 0), *place(tensor, 1)}, x);
    } else {
      widen(Raw<T>{*place(tensor, 0)}, x);
    }
  }

 private:
  __device__ uint4* place(int tensor, int piece) const {
    return places_ + ((stage_ * kTensors + tensor) * kPieces + piece) * kWarps * kWarp;
  }

  uint4* places_;
  unsigned stage_ = 0;
};

// Vectors of any dtype are loaded when they are taken.
template <int kTensors>
class Coming<void, kTensors> {
 public:
  static constexpr std::size_t kShared = 0;

  template <class TensorOf>
  __device__ void ask(bool, std::int64_t, std::int64_t, TensorOf) {}
  __device__ void take(int, const Source& source, std::int64_t element, std::int64_t size, float (&x)[kVector]) const {
    widen(load_any(source, element, range_at(element, size)), x);
  }
};

// Calls use(j, kept) for each element of a vector of deltas by a rule of that kind. keys: see keep_random.
template <int kKind, class Use>
__device__ __forceinline__ void keep_of_kind(const KeepRule& rule, const RoundKeys& keys, const Band& band,
                                             const float (&delta)[kVector], std::int64_t element, std::int64_t size,
                                             Use use) {
  const Range range = range_at(element, size);
  if constexpr (kKind == kKeepRandom) {
    keep_random<true>(rule, keys, rule.first + element, use);
  } else if constexpr (kKind == kKeepMask) {
    keep_masked<true>(rule, rule.first + element, range, use);
  } else {
    keep_vector<true>(rule, band, delta, static_cast<std::uint32_t>(element / kVector), range, use);
  }
}

// Whether a delta of a chunk drops a NaN or an infinity, which the sum of what it keeps must not lose: what is dropped
// counts as multiplied by 0. For a warp.
template <class T, int kKind, int kModels>
__device__ inline bool drops_special(const Input<kModels>& p, int k, std::int64_t chunk) {
  const Rows rows(chunk, p.size);
  Band band;
  if constexpr (kKind == kAnyKind) band_of(p.rules[k], band);
  bool special = false;
#pragma unroll 1
  for (int row = 0; row < rows.count; ++row) {
    const std::int64_t element = rows.element + row * kLanes;
    float delta[kVector], base[kVector] = {};
    widen(load_vector<T>(p.tensors[k], element, p.size), delta);
    if (p.base.data) widen(load_vector<T>(p.base, element, p.size), base);
#pragma unroll
    for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
    keep_of_kind<kKind>(p.rules[k], p.rules[0].random.keys, band, delta, element, p.size,
                        [&](int j, bool kept) { special = special || (!kept && !(std::fabs(delta[j]) <= kLargest)); });
  }
  return __any_sync(0xFFFFFFFFu, special);
}

// Adds up a chunk.
template <class T, int kModels, int kKind, bool kSquared>
__device__ inline void sum_chunk(const Input<kModels>& p, std::int64_t chunk, double (&all)[kModels][kVector],
                                 double (&inside)[kModels][kVector]) {
  const bool based = p.base.data != nullptr;
  const Rows rows(chunk, p.size);
  if (rows.count == 0) return;
  Band band;
  if constexpr (kKind == kAnyKind) {
    // What is kept by a boundary that was not found has no norm.
    if (!band_of(p.rules[0], band)) all[0][0] = inside[0][0] = kNone;
  }
  const auto tensor_of = [&](int k) -> const Source& { return k < kModels ? p.tensors[k] : p.base; };
  Coming<T, kModels + 1> coming;
#pragma unroll 1
  for (int row = 0; row < kStages - 1; ++row) {
    coming.ask(row < rows.count, rows.element + row * kLanes, p.size, tensor_of);
  }
  std::int64_t element = rows.element;
#pragma unroll 1
  for (int left = rows.count; left > 0; --left) {
    coming.ask(left >= kStages, element + (kStages - 1) * kLanes, p.size, tensor_of);
    // Subtracting +0, where there is no base, changes no magnitude.
    float base[kVector] = {};
    if (based) coming.take(kModels, p.base, element, p.size, base);
#pragma unroll
    for (int k = 0; k < kModels; ++k) {
      float delta[kVector];
      coming.take(k, p.tensors[k], element, p.size, delta);
#pragma unroll
      for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
      const auto add = [&](int j, bool kept) {
        const double x = std::fabs(delta[j]);
        const double power = kSquared ? x * x : x;
        all[k][j] = all[k][j] + power;
        if (kept) inside[k][j] = inside[k][j] + power;
      };
      static_assert(kModels == 1 || kKind != kAnyKind, "one band");
      keep_of_kind<kKind>(p.rules[k], p.rules[0].random.keys, band, delta, element, p.size, add);
    }
    element += kLanes;
  }
}

// Blocks that a multiprocessor should hold: the compiler fits registers to it.
template <class T, int kModels, int kKind>
constexpr int kBlocks = kModels == 1                               ? 8
                        : kModels == kMost && kKind == kKeepRandom ? 5
                                                                   : 6;

template <class T, int kModels, int kKind, bool kSquared>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<T, kModels, kKind>)
    norms_kernel(const __grid_constant__ Input<kModels> p) {
  const std::int64_t chunk = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (chunk >= p.chunks) return;
  double all[kModels][kVector] = {}, inside[kModels][kVector] = {};
  sum_chunk<T, kModels, kKind, kSquared>(p, chunk, all, inside);
  double* const out = p.partials + chunk * p.columns;
  double sum = 0;
#pragma unroll
  for (int k = 0; k < kModels; ++k) {
    const double total = tree_sum(all[k]), kept = tree_sum(inside[k]);
    sum += total;
    if (threadIdx.x % kWarp != 0) continue;
    out[2 * k] = total;
    out[2 * k + 1] = kept;
  }
  // Sums of powers of float32 never reach infinity.
  if (__shfl_sync(0xFFFFFFFFu, sum, 0) <= kFinite) return;
#pragma unroll 1
  for (int k = 0; k < kModels; ++k) {
    if (drops_special<T, kKind>(p, k, chunk) && threadIdx.x % kWarp == 0) out[2 * k + 1] = kNone;
  }
}

// The norms of kModels deltas from number `first` on.
template <class T, int kModels, int kKind, bool kSquared>
void launch_norms(double* partials, const Tensors& inputs, const std::vector<KeepRule>& rules, int first,
                  const Stream& stream) {
  Input<kModels> p{};
  for (int k = 0; k < kModels; ++k) {
    p.tensors[k] = source(inputs.tensors[first + k], 0);
    p.rules[k] = rules[first + k];
  }
  p.base = source(inputs.base, 0);
  p.partials = partials + 2 * first;
  p.size = static_cast<std::int64_t>(inputs.size);
  p.chunks = static_cast<std::int64_t>(chunks_of(inputs.size));
  p.columns = 2 * inputs.count();
  const std::string what =
      "norms of " + std::to_string(kModels) + " tensors, " + std::to_string(inputs.size) + " elements";
  launch(what, stream, norms_kernel<T, kModels, kKind, kSquared>,
         {static_cast<unsigned>((p.chunks + kWarps - 1) / kWarps), kWarps * kWarp, Coming<T, kModels + 1>::kShared}, p);
}

// The norms of all deltas, whose rules are of one kind, in groups that are as even as can be.
template <class T, int kKind>
void launch_groups(double* partials, const Tensors& inputs, const std::vector<KeepRule>& rules, const Stream& stream) {
  const int count = inputs.count();
  for (int first = 0, groups = (count + kMost - 1) / kMost; groups > 0; --groups) {
    const int models = (count - first + groups - 1) / groups;
    with_constant<kMost>(models - 1, [&](auto less) {
      constexpr int kModels = decltype(less)::value + 1;
      launch_norms<T, kModels, kModels == 1 ? kAnyKind : kKind, false>(partials, inputs, rules, first, stream);
    });
    first += models;
  }
}

}  // namespace

void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset,
           const Stream& stream) {
  if (inputs.size == 0) return;
  std::vector<KeepRule> rules;
  for (const Keep& keep : keeps) rules.push_back(make_rule(keep, offset, 0));
  const auto all_are = [&](Kind kind) {
    return power == 1 && std::all_of(rules.begin(), rules.end(), [=](const KeepRule& r) { return r.kind == kind; });
  };
  const bool one_key = std::all_of(keeps.begin(), keeps.end(), [&](const Keep& keep) { return keep.a == keeps[0].a; });
  with_dtype(inputs, [&](auto* dtype) {
    using T = std::remove_pointer_t<decltype(dtype)>;
    if constexpr (!std::is_void_v<T>) {
      if (all_are(kKeepRandom) && one_key) return launch_groups<T, kKeepRandom>(partials, inputs, rules, stream);
      if (all_are(kKeepMask)) return launch_groups<T, kKeepMask>(partials, inputs, rules, stream);
    }
    for (int first = 0; first < inputs.count(); ++first) {
      if (power == 2) {
        launch_norms<T, 1, kAnyKind, true>(partials, inputs, rules, first, stream);
      } else {
        launch_norms<T, 1, kAnyKind, false>(partials, inputs, rules, first, stream);
      }
    }
  });
}

}  // namespace fastmerge::cuda
