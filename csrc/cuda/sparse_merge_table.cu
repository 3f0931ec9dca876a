// Sparse merges of a table of tensors: small ones, those of many models, and of any dtypes and alignment.
//
// The first pass over the models of a vector adds up their votes, and keeps what was loaded and which elements take
// part in shared memory; the second pass makes the deltas again. Without an election there is one pass.
#include "sparse_merge.h"

namespace fastmerge::cuda {
namespace {

constexpr int kMostThreads = 128;
// Of vectors and bits, so that a multiprocessor holds several blocks.
constexpr std::size_t kMostShared = 68 << 10;

struct Model {
  Source tensor;
  KeepRule rule;
};

struct Row {
  Source out, base;
  std::int64_t size;
  const float* found_factors;
  Stripes part;  // of its random rules
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

template <class T>
constexpr int kWords = std::is_void_v<T> || std::is_same_v<T, float> ? 2 : 1;  // of 16 bytes, of a vector as loaded
template <class T>
constexpr std::size_t kBytes = 16 * kWords<T> + sizeof(unsigned);  // of a thread and model

// The vectors of a thread, and a word for each: [model][thread].
template <class T>
class Stash {
 public:
  __device__ explicit Stash(int count)
      : words_(dynamic_shared<uint4>() + threadIdx.x),
        bits_(reinterpret_cast<unsigned*>(dynamic_shared<uint4>() + kWords<T> * count * blockDim.x) + threadIdx.x) {}

  __device__ void put(int k, const typename Loaded<T>::Type& raw, unsigned bits) {
    words_[kWords<T> * k * blockDim.x] = raw.words;
    if constexpr (kWords<T> == 2) words_[(kWords<T> * k + 1) * blockDim.x] = raw.more;
    bits_[k * blockDim.x] = bits;
  }

  __device__ typename Loaded<T>::Type get(int k, const Source& source) const {
    const uint4 words = words_[kWords<T> * k * blockDim.x];
    if constexpr (kWords<T> == 1) {
      return {words};
    } else if constexpr (std::is_void_v<T>) {
      return {words, words_[(kWords<T> * k + 1) * blockDim.x], source.dtype};
    } else {
      return {words, words_[(kWords<T> * k + 1) * blockDim.x]};
    }
  }

  __device__ unsigned bits(int k) const { return bits_[k * blockDim.x]; }

 private:
  uint4* words_;
  unsigned* bits_;
};

// T: of all tensors; void for any. kStriped: some parts are strided.
template <class T, int kVote, bool kStriped>
__global__ void __launch_bounds__(kMostThreads) sparse_merge_table_kernel(const __grid_constant__ Table table) {
  __shared__ Answers<kMaxTensors> answers;
  const Row& row = table.rows[row_of(table, blockIdx.x)];
  const Model* const models = table.models + row.first_model;
  const int count = row.count;
  const std::uint32_t vector = (blockIdx.x - row.first_tile) * blockDim.x + threadIdx.x;
  const std::int64_t element = std::int64_t{vector} * kVector - row.shift;
  find_answers(answers, count, table.factors + row.first_model, row.found_factors,
               [&](int k) -> const KeepRule& { return models[k].rule; });
  __syncthreads();
  if (element >= row.size || answers.missing) return;
  const Range range = range_at(element, row.size);
  Stash<T> stash(count);
  float base[kVector], votes[kVector];
  widen(load_vector<T>(row.base, element, row.size), base);
#pragma unroll
  // Adding to -0 changes no vote, not even the sign of a zero.
  for (int j = 0; j < kVector; ++j) votes[j] = -0.0f;
  auto next = load_vector<T>(models[0].tensor, element, row.size);
  for (int k = 0; k < count; ++k) {
    const auto raw = next;
    // In flight while this model votes.
    if (k + 1 < count) next = load_vector<T>(models[k + 1].tensor, element, row.size);
    float delta[kVector];
    widen(raw, delta);
#pragma unroll
    for (int j = 0; j < kVector; ++j) delta[j] = delta[j] - base[j];
    const float factor = answers.factors[k];
    unsigned bits = 0;
    const auto add = [&](int j, bool kept) {
      const Part<float, bool> part{delta[j], kept};
      if constexpr (kVote == kVoteNone) {
        votes[j] = votes[j] + part.times(part, factor);
      } else {
        votes[j] = votes[j] + vote_of<kVote, float>(part, factor);
        bits |= unsigned{kept} << j;
      }
    };
    const KeepRule& rule = models[k].rule;
    if (kStriped && rule.kind == kKeepRandom && row.part.row != 0) {
      keep_random(rule, row.part, rule.first + std::int64_t{vector} * kVector, add);
    } else {
      keep_vector<false>(rule, answers.bands[k], delta, vector, range, add);
    }
    if constexpr (kVote != kVoteNone) stash.put(k, raw, bits);
  }
  float merged[kVector], divisor[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    merged[j] = kVote == kVoteNone ? votes[j] : 0.0f;
    divisor[j] = kVote == kVoteNone ? row.divisor : 0.0f;
  }
  if constexpr (kVote != kVoteNone) {
    for (int k = 0; k < count; ++k) {
      float x[kVector];
      widen(stash.get(k, models[k].tensor), x);
      const float factor = answers.factors[k], weight = table.weights[row.first_model + k];
      const unsigned bits = stash.bits(k);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const Part<float, bool> part{x[j] - base[j], (bits >> j & 1u) != 0};
        const float contribution = part.times(part, factor);
        const bool agreed = agrees<kVote, float>(part, contribution, flip_of(votes[j]));
        merged[j] = add_where(agreed, merged[j], contribution);
        divisor[j] = add_where(agreed, divisor[j], weight);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (row.divides) merged[j] = divided_unless_zero<float>(merged[j], divisor[j]);
    base[j] = base[j] + merged[j] * row.scale;
  }
  if constexpr (std::is_void_v<T>) {
    store_any(row.out, element, range, base);
  } else {
    store_part(const_cast<void*>(row.out.data), element, range, true, narrow<T>(base));
  }
}

// Threads of a block whose vectors and bits fit the shared memory.
int threads_of(int most, std::size_t each) {
  int threads = kMostThreads;
  while (threads > 32 && threads * each * most > kMostShared) threads /= 2;
  return threads;
}

constexpr int kAny = -1;

}  // namespace

struct MergeTables::Pending {
  int dtype = kAny, vote = 0, most = 0;
  bool striped = false;
  Table table{};
};

MergeTables::MergeTables(const Stream& stream) : stream_(stream) {}

MergeTables::~MergeTables() = default;

void MergeTables::add(const MergeJob& job, std::size_t begin, std::size_t end, int head, bool uniform) {
  if (begin == end) return;
  if (!pending_) pending_ = std::make_unique<Pending>();
  Table& table = pending_->table;
  // One kernel for any dtype serves strided parts.
  const auto striped = std::find_if(job.keeps.begin(), job.keeps.end(), [](const Keep& k) { return k.row != 0; });
  const int count = job.inputs.count(), dtype = uniform && striped == job.keeps.end() ? job.out.dtype : kAny;
  if (table.count == kRows || table.inputs + count > kModels ||
      (table.count > 0 && (job.vote != pending_->vote || dtype != pending_->dtype || count != pending_->most))) {
    flush();
  }
  pending_->vote = job.vote;
  pending_->dtype = dtype;
  pending_->most = count;
  const auto part = [&](const void* data, int dtype) {
    return source({moved(data, dtype, static_cast<std::int64_t>(begin)), dtype}, head);
  };
  Row& row = table.rows[table.count++];
  row.out = part(job.out.data, job.out.dtype);
  row.base = part(job.inputs.base.data, job.inputs.base.dtype);
  row.size = static_cast<std::int64_t>(end - begin);
  row.found_factors = job.found_factors;
  row.part = {};
  if (striped != job.keeps.end()) {
    row.part = {striped->d, striped->row, striped->stride};
    pending_->striped = true;
  }
  row.first_tile = table.tiles;
  row.first_model = table.inputs;
  row.scale = job.scale;
  row.divisor = job.divisor;
  row.count = static_cast<std::uint8_t>(count);
  row.shift = static_cast<std::uint8_t>((kVector - head) % kVector);
  row.divides = job.divides;
  for (int k = 0; k < count; ++k) {
    const Array tensor = job.inputs.tensors[k];
    Model& model = table.models[table.inputs];
    model = {part(tensor.data, tensor.dtype), make_rule(job.keeps[k], job.offset + begin, row.shift)};
    table.factors[table.inputs] = job.factors[k];
    table.weights[table.inputs++] = job.weights[k];
  }
  const bool wide = dtype == kAny || dtype == kFloat32;
  table.tiles += tiles_of(row.size, row.shift, threads_of(count, wide ? kBytes<void> : kBytes<BFloat16>));
}

void MergeTables::flush() {
  if (!pending_ || pending_->table.count == 0) return;
  Table& table = pending_->table;
  const std::string what = "sparse_merge of a table of " + std::to_string(table.count) + " tensors";
  const auto run = [&](auto* dtype, auto vote) {
    using T = std::remove_pointer_t<decltype(dtype)>;
    constexpr int kVote = decltype(vote)::value;
    const int threads = threads_of(pending_->most, kBytes<T>);
    const std::size_t shared = kVote == kVoteNone ? 0 : kBytes<T> * pending_->most * threads;
    const Grid grid{table.tiles, static_cast<unsigned>(threads), shared};
    if constexpr (std::is_void_v<T>) {
      if (pending_->striped) return launch(what, stream_, sparse_merge_table_kernel<T, kVote, true>, grid, table);
    }
    launch(what, stream_, sparse_merge_table_kernel<T, kVote, false>, grid, table);
  };
  const auto of_vote = [&](auto* dtype) { with_constant<4>(pending_->vote, [&](auto vote) { run(dtype, vote); }); };
  if (pending_->dtype == kBFloat16) {
    of_vote(static_cast<BFloat16*>(nullptr));
  } else if (pending_->dtype == kFloat16) {
    of_vote(static_cast<Float16*>(nullptr));
  } else if (pending_->dtype == kFloat32) {
    of_vote(static_cast<float*>(nullptr));
  } else {
    of_vote(static_cast<void*>(nullptr));
  }
  table.count = 0;
  table.inputs = table.tiles = 0;
  pending_->striped = false;
}

}  // namespace fastmerge::cuda
