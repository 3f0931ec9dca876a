// The fused sparse merge. Large tensors of one dtype and of up to four models are merged in registers by kernels
// compiled for both; everything else shares the kernels of sparse_merge_table.cu.
#include "sparse_merge.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 256;
// Models whose contributions stay in registers.
constexpr int kMost = 4;
// Blocks that a multiprocessor holds, by the number of models: the compiler fits registers to it.
constexpr int kBlocks[] = {4, 3, 3, 2};

// One model's part in an element, for sparse_merge_element: the delta times 0 or its factor. A dropped element's zero
// may differ in sign, and is only ever added to a sum that began with +0.
struct Prepared {
  float value;

  __device__ static float times(const Prepared& part, float) { return part.value; }
};

template <class T, int kCount>
struct Whole {
  T* out;
  const T* base;
  const T* tensors[kCount];
  KeepRule rules[kCount];
  float factors[kCount];
  const float* found_factors;
  float scale;
  bool divides;
  std::uint32_t vectors;
  Quotient quotients[1 << kCount];  // vote none: the first
};

// A vector per thread, and blocks in the order of addresses.
template <class T, int kVote, int kCount>
__global__ void __launch_bounds__(kThreads, kBlocks[kCount - 1])
    sparse_merge_kernel(const __grid_constant__ Whole<T, kCount> p) {
  __shared__ Answers<kCount> answers;
  // Where threads look up different entries.
  __shared__ Quotient quotients[1 << kCount];
  const std::uint32_t vector = blockIdx.x * kThreads + threadIdx.x;
  const std::int64_t element = std::int64_t{vector} * kVector;
  // On their way while the block finds its answers.
  Raw<T> raw_base{}, raw[kCount] = {};
  if (vector < p.vectors) {
    raw_base = load(p.base + element);
#pragma unroll
    for (int k = 0; k < kCount; ++k) raw[k] = load(p.tensors[k] + element);
  }
  find_answers(answers, kCount, p.factors, p.found_factors, [&](int k) -> const KeepRule& { return p.rules[k]; });
  if (kVote != kVoteNone && threadIdx.x < 1 << kCount) quotients[threadIdx.x] = p.quotients[threadIdx.x];
  __syncthreads();
  if (vector >= p.vectors || answers.missing) return;
  const MergeScalars scalars{
      answers.factors, nullptr, p.scale, 0.0f, p.divides, kVote == kVoteNone ? p.quotients : quotients};
  float base[kVector], values[kCount][kVector];
  widen(raw_base, base);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    float delta[kVector];
    widen(raw[k], delta);
#pragma unroll
    for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
    const float factor = answers.factors[k];
    keep_vector<true>(p.rules[k], answers.bands[k], delta, vector, {0, kVector},
                      [&](int j, bool kept) { values[k][j] = Part<float, bool>::times({delta[j], kept}, factor); });
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    base[j] =
        sparse_merge_element<kVote, true>(base[j], kCount, scalars, [&](int k) { return Prepared{values[k][j]}; });
  }
  store(p.out + element, narrow<T>(base));
}

template <class T>
void merge_whole(const MergeJob& job, const std::vector<KeepRule>& rules, int head, std::size_t vectors,
                 const Stream& stream) {
  const auto at = [&](const void* data) { return reinterpret_cast<const T*>(moved(data, job.out.dtype, head)); };
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
    p.found_factors = job.found_factors;
    p.scale = job.scale;
    p.divides = job.divides;
    if (job.divides && job.vote == kVoteNone) p.quotients[0] = quotient_of(job.divisor);
    if (job.divides && job.vote != kVoteNone) elected_quotients(p.quotients, job.weights.data(), kCount);
    p.vectors = static_cast<std::uint32_t>(vectors);
    const Grid grid{blocks_of(vectors, kThreads), kThreads};
    if (job.vote == kVoteNone) {
      launch(describe(job), stream, sparse_merge_kernel<T, kVoteNone, kCount>, grid, p);
    } else {
      launch(describe(job), stream, sparse_merge_kernel<T, kVoteWeighted, kCount>, grid, p);
    }
  });
}

}  // namespace

void sparse_merge(const std::vector<MergeJob>& jobs, const Stream& stream) {
  MergeTables parts(stream), edges(stream);
  for (const MergeJob& job : jobs) {
    const Array out{job.out.data, job.out.dtype};
    const std::size_t size = job.inputs.size, head = std::min<std::size_t>(head_of(out), size);
    const std::size_t vectors = (size - head) / kVector, end = head + vectors * kVector;
    const bool one_dtype = uniform(job.inputs, out, static_cast<int>(head));
    std::vector<KeepRule> rules;
    for (const Keep& keep : job.keeps) rules.push_back(make_rule(keep, job.offset + head, 0));
    const bool off_blocks = (job.offset + head) % 8 != 0 && std::any_of(rules.begin(), rules.end(), in_blocks);
    const bool striped =
        std::any_of(job.keeps.begin(), job.keeps.end(), [](const Keep& keep) { return keep.row != 0; });
    const bool few = job.inputs.count() <= kMost && (job.vote == kVoteNone || job.vote == kVoteWeighted);
    if ((jobs.size() > 1 && size < kLarge) || vectors == 0 || off_blocks || striped || !few || !one_dtype) {
      parts.add(job, 0, size, static_cast<int>(head), one_dtype && head == 0);
      continue;
    }
    const auto whole = out.dtype == kFloat32    ? merge_whole<float>
                       : out.dtype == kBFloat16 ? merge_whole<BFloat16>
                                                : merge_whole<Float16>;
    whole(job, rules, static_cast<int>(head), vectors, stream);
    edges.add(job, 0, head, 0, false);
    edges.add(job, end, size, 0, false);
  }
  parts.flush();
  edges.flush();
}

}  // namespace fastmerge::cuda
