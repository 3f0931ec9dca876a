// The fused sparse merge. Large bfloat16 tensors of up to four models are merged in registers by kernels compiled for
// their number; everything else shares a kernel that takes a table of tensors and keeps contributions in shared memory.
#include "keep.h"
#include "split.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 256;
// Models whose contributions stay in registers.
constexpr int kMost = 4;
// Blocks that a multiprocessor holds, by the number of models: the compiler fits registers to it.
constexpr int kBlocks[] = {4, 3, 3, 2};

// One model's part in an element, for sparse_merge_element: the delta times 0 or its first factor.
template <int kVote>
struct Prepared {
  static constexpr bool kFactored = kVote == kVoteNone || kVote == kVoteWeighted;
  float value;

  __device__ static float prepare(float delta, bool kept, float factor) {
    return Part<float, bool>::times({delta, kept}, kFactored ? factor : 1.0f);
  }
  // (delta * 1) * factor has the bits of delta * factor. A dropped element's zero may differ in sign, and is only ever
  // added to a sum that began with +0.
  __device__ static float times(const Prepared& part, float factor) {
    return kFactored ? part.value : part.value * factor;
  }
};

template <class T, int kCount>
struct Whole {
  T* out;
  const T* base;
  const T* tensors[kCount];
  KeepRule rules[kCount];
  float factors[kCount];
  float scale;
  bool divides;
  std::int64_t vectors;
  Quotient quotients[1 << kCount];  // vote none: the first
};

template <class T, int kVote, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocks[kCount - 1])
    sparse_merge_kernel(const __grid_constant__ Whole<T, kCount> p) {
  // Where threads look up different entries.
  __shared__ Quotient quotients[1 << kCount];
  if (kVote != kVoteNone && threadIdx.x < 1 << kCount) quotients[threadIdx.x] = p.quotients[threadIdx.x];
  __syncthreads();
  const MergeScalars scalars{p.factors, nullptr,   p.scale,
                             0.0f,      p.divides, kVote == kVoteNone ? p.quotients : quotients};
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; at < p.vectors; at += step) {
    const std::int64_t element = at * kVector;
    const Raw<T> raw_base = load(p.base + element);
    Raw<T> raw[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) raw[k] = load(p.tensors[k] + element);
    float base[kVector], values[kCount][kVector];
    widen(raw_base, base);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      float delta[kVector];
      widen(raw[k], delta);
#pragma unroll
      for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
      keep_vector<true>(p.rules[k], delta, at, {0, kVector}, [&](int j, bool kept) {
        values[k][j] = Prepared<kVote>::prepare(delta[j], kept, p.factors[k]);
      });
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      base[j] = sparse_merge_element<kVote, true>(base[j], kCount, scalars,
                                                  [&](int k) { return Prepared<kVote>{values[k][j]}; });
    }
    store(p.out + element, narrow<T>(base));
  }
}

struct Model {
  Source tensor;
  KeepRule rule;
};

struct Row {
  Source out, base;
  std::int64_t size;
  unsigned first_tile, first_model;
  float scale, divisor;
  std::uint8_t count, shift;
  bool divides;
};

// As large as kernel parameters may be: 32,764 bytes.
constexpr int kRows = 64, kModels = 192;
struct Table {
  Row rows[kRows];
  Model models[kModels];
  float factors[kModels], weights[kModels];
  int count;
  unsigned inputs, tiles;
};
static_assert(sizeof(Table) <= 32764, "a table is too large for the parameters of a kernel");

// Threads of a block whose contributions fit 68 KB of shared memory.
int table_threads(int most) { return most <= 16 ? 128 : most <= 32 ? 64 : 32; }

template <int kVote>
__global__ void __launch_bounds__(128) sparse_merge_table_kernel(const __grid_constant__ Table table) {
  // Element j of model k: [k][j][thread], then of the base. Each thread reads what it wrote.
  float* const values = dynamic_shared<float>() + threadIdx.x;
  const int threads = static_cast<int>(blockDim.x);
  const auto value = [=](int k, int j) -> float& { return values[(k * kVector + j) * threads]; };
  for (unsigned tile = blockIdx.x; tile < table.tiles; tile += gridDim.x) {
    const Row& row = table.rows[row_of(table, tile)];
    const std::int64_t vector = std::int64_t{tile - row.first_tile} * threads + threadIdx.x;
    const std::int64_t element = vector * kVector - row.shift;
    if (element >= row.size) continue;
    const Range range = range_at(element, row.size);
    const Model* const models = table.models + row.first_model;
    const float* const factors = table.factors + row.first_model;
    const int count = row.count;
    float base[kVector];
    widen(load_any(row.base, element, range), base);
    AnyRaw next = load_any(models[0].tensor, element, range);
    for (int k = 0; k < count; ++k) {
      float delta[kVector];
      widen(next, delta);
      // In flight while this model is prepared.
      if (k + 1 < count) next = load_any(models[k + 1].tensor, element, range);
#pragma unroll
      for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
      keep_vector<false>(models[k].rule, delta, vector, range,
                         [&](int j, bool kept) { value(k, j) = Prepared<kVote>::prepare(delta[j], kept, factors[k]); });
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) value(count, j) = base[j];
    const MergeScalars scalars{factors, table.weights + row.first_model, row.scale, row.divisor, row.divides, nullptr};
    // Not unrolled: eight copies of the loops over models would be most of the extension.
#pragma unroll 1
    for (int j = 0; j < kVector; ++j) {
      value(count, j) = sparse_merge_element<kVote>(value(count, j), count, scalars,
                                                    [&](int k) { return Prepared<kVote>{value(k, j)}; });
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) base[j] = value(count, j);
    store_any(row.out, element, range, base);
  }
}

std::string describe(const MergeJob& job) {
  return "sparse_merge of " + std::to_string(job.inputs.count()) + " tensors, " + std::to_string(job.inputs.size) +
         " elements";
}

// Calls f with an integral constant of `value`, which lies in 0 .. kEnd - 1.
template <int kEnd, class Function>
void with_constant(int value, Function f) {
  if constexpr (kEnd > 0) {
    if (value == kEnd - 1) return f(std::integral_constant<int, kEnd - 1>{});
    with_constant<kEnd - 1>(value, f);
  }
}

void merge_whole(const MergeJob& job, const std::vector<KeepRule>& rules, int head, std::size_t vectors,
                 const Stream& stream) {
  using T = BFloat16;
  const auto at = [&](const void* data) { return reinterpret_cast<const T*>(moved(data, kBFloat16, head)); };
  with_constant<kMost>(job.inputs.count() - 1, [&](auto less) {
    constexpr int kCount = decltype(less)::value + 1;
    Whole<T, kCount> p{};
    p.out = const_cast<T*>(at(job.out.data));
    p.base = at(job.inputs.base.data);
    for (int k = 0; k < kCount; ++k) {
      p.tensors[k] = at(job.inputs.tensors[k].data);
      p.rules[k] = rules[k];
      p.factors[k] = job.factors[k];
    }
    p.scale = job.scale;
    p.divides = job.divides;
    if (job.divides && job.vote == kVoteNone) p.quotients[0] = quotient_of(job.divisor);
    if (job.divides && job.vote != kVoteNone) elected_quotients(p.quotients, job.weights.data(), kCount);
    p.vectors = static_cast<std::int64_t>(vectors);
    with_constant<4>(job.vote, [&](auto vote) {
      constexpr auto kKernel = sparse_merge_kernel<T, decltype(vote)::value, kCount>;
      launch(describe(job), stream, kKernel, {blocks_for(vectors, kThreads, stream.device), kThreads}, p);
    });
  });
}

// Collects parts of jobs of one vote and launches them whenever the table is full.
class Pending {
 public:
  Pending(const Stream& stream, int threads) : stream_(stream), threads_(threads) {}

  // The elements begin .. end - 1 of a job, cut `head` elements after the first of them.
  void add(const MergeJob& job, std::size_t begin, std::size_t end, int head) {
    if (begin == end) return;
    const int count = job.inputs.count();
    if (table_.count == kRows || table_.inputs + count > kModels || (table_.count > 0 && job.vote != vote_)) flush();
    vote_ = job.vote;
    most_ = std::max(most_, count);
    const auto part = [&](const void* data, int dtype) {
      return source({moved(data, dtype, static_cast<std::int64_t>(begin)), dtype}, head);
    };
    Row& row = table_.rows[table_.count++];
    row.out = part(job.out.data, job.out.dtype);
    row.base = part(job.inputs.base.data, job.inputs.base.dtype);
    row.size = static_cast<std::int64_t>(end - begin);
    row.first_tile = table_.tiles;
    row.first_model = table_.inputs;
    row.scale = job.scale;
    row.divisor = job.divisor;
    row.count = static_cast<std::uint8_t>(count);
    row.shift = static_cast<std::uint8_t>((kVector - head) % kVector);
    row.divides = job.divides;
    for (int k = 0; k < count; ++k) {
      const Array tensor = job.inputs.tensors[k];
      table_.models[table_.inputs] = {part(tensor.data, tensor.dtype),
                                      make_rule(job.keeps[k], job.offset + begin, row.shift)};
      table_.factors[table_.inputs] = job.factors[k];
      table_.weights[table_.inputs++] = job.weights[k];
    }
    table_.tiles += tiles_of(row.size, row.shift, threads_);
  }

  void flush() {
    if (table_.count == 0) return;
    const std::string what = "sparse_merge of a table of " + std::to_string(table_.count) + " tensors";
    const unsigned blocks = blocks_for(std::size_t{table_.tiles} * threads_, threads_, stream_.device);
    const Grid grid{blocks, static_cast<unsigned>(threads_), sizeof(float) * kVector * (most_ + 1) * threads_};
    with_constant<4>(vote_, [&](auto vote) {
      launch(what, stream_, sparse_merge_table_kernel<decltype(vote)::value>, grid, table_);
    });
    table_.count = most_ = 0;
    table_.inputs = table_.tiles = 0;
  }

 private:
  Stream stream_;
  int threads_, vote_ = 0, most_ = 0;
  Table table_{};
};

}  // namespace

void sparse_merge(const std::vector<MergeJob>& jobs, const Stream& stream) {
  int most = 1;
  for (const MergeJob& job : jobs) most = std::max(most, job.inputs.count());
  Pending pending(stream, table_threads(most));
  for (const MergeJob& job : jobs) {
    const Array out{job.out.data, job.out.dtype};
    const std::size_t size = job.inputs.size, head = std::min<std::size_t>(head_of(out), size);
    const std::size_t vectors = (size - head) / kVector, end = head + vectors * kVector;
    std::vector<KeepRule> rules;
    for (const Keep& keep : job.keeps) rules.push_back(make_rule(keep, job.offset + head, 0));
    const bool off_blocks = (job.offset + head) % 8 != 0 && std::any_of(rules.begin(), rules.end(), in_blocks);
    if ((jobs.size() > 1 && size < kLarge) || vectors == 0 || off_blocks || out.dtype != kBFloat16 ||
        job.inputs.count() > kMost || !uniform(job.inputs, out, static_cast<int>(head))) {
      pending.add(job, 0, size, static_cast<int>(head));
      continue;
    }
    merge_whole(job, rules, static_cast<int>(head), vectors, stream);
    pending.add(job, 0, head, 0);
    pending.add(job, end, size, 0);
  }
  pending.flush();
}

}  // namespace fastmerge::cuda
