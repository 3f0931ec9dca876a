// The weighted sum. Large tensors of one dtype are summed in whole vectors by a kernel of their own; small tensors,
// mixed dtypes and the edges of large tensors share the kernel of the tables.
#include "split.h"

namespace fastmerge::cuda {
namespace {

constexpr int kThreads = 256;
// Tensors whose loads are in flight together.
constexpr int kBatch = 4;

// load(k) returns a vector of tensor k as loaded, weight_of(k) its weight.
template <class Weight, class Load>
__device__ inline void sum_vector(float (&acc)[kVector], int count, Weight weight_of, Load load) {
#pragma unroll
  // Adding to -0 changes no product, not even the sign of a zero.
  for (int j = 0; j < kVector; ++j) acc[j] = -0.0f;
  for (int first = 0; first < count; first += kBatch) {
    decltype(load(0)) raw[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i < count) raw[i] = load(first + i);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= count) break;
      const float weight = weight_of(first + i);
      float x[kVector];
      widen(raw[i], x);
#pragma unroll
      for (int j = 0; j < kVector; ++j) acc[j] = multiply_add<float>(acc[j], x[j], weight);
    }
  }
}

template <class T>
struct Whole {
  T* out;
  const T* tensors[kMaxTensors];
  float weights[kMaxTensors];
  const float* found;
  std::int64_t vectors;
  int count;
};

// A vector per thread, and blocks in the order of addresses. Nothing beyond the last vector is read: `out` may be an
// input, and the last vector another thread's. kFound: the weights are those that the device found, see SumJob.
template <bool kFound, class T>
__device__ inline void sum_own_vector(const Whole<T>& p) {
  const std::int64_t vector = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (vector >= p.vectors) return;
  float acc[kVector];
  sum_vector(
      acc, p.count, [&](int k) { return kFound ? p.found[k] : p.weights[k]; },
      [&](int k) { return load(p.tensors[k] + vector * kVector); });
  // Asked last, so that the inputs are on their way.
  if (kFound && p.found[p.count] != 0) return;
  store(p.out + vector * kVector, narrow<T>(acc));
}

template <class T>
__global__ void __launch_bounds__(kThreads) weighted_sum_kernel(const __grid_constant__ Whole<T> p) {
  sum_own_vector<false>(p);
}

template <class T>
__global__ void __launch_bounds__(kThreads) found_weighted_sum_kernel(const __grid_constant__ Whole<T> p) {
  sum_own_vector<true>(p);
}

// Of a row whose weights are known to the host.
constexpr std::int32_t kGiven = -1;

struct Row {
  Source out;
  std::int64_t size;
  unsigned first_tile, first_input;
  std::int32_t found;  // where the weights lie among those that the device found
  std::uint8_t count, shift;
};

// As large as kernel parameters may be: 32,764 bytes.
constexpr int kRows = 320, kInputs = 960;
struct Table {
  Row rows[kRows];
  Source tensors[kInputs];
  float weights[kInputs];
  const float* found;
  int count;
  unsigned inputs, tiles;
};
static_assert(sizeof(Table) <= 32764, "a table is too large for the parameters of a kernel");

__global__ void __launch_bounds__(kThreads) weighted_sum_table_kernel(const __grid_constant__ Table table) {
  const Row& row = table.rows[row_of(table, blockIdx.x)];
  const std::int64_t vector = std::int64_t{blockIdx.x - row.first_tile} * kThreads + threadIdx.x;
  const std::int64_t element = vector * kVector - row.shift;
  if (element >= row.size) return;
  const Range range = range_at(element, row.size);
  float acc[kVector];
  const bool given = row.found == kGiven;
  sum_vector(
      acc, row.count, [&](int k) { return given ? table.weights[row.first_input + k] : table.found[row.found + k]; },
      [&](int k) { return load_any(table.tensors[row.first_input + k], element, range); });
  if (!given && table.found[row.found + row.count] != 0) return;
  store_any(row.out, element, range, acc);
}

std::string describe(const SumJob& job) {
  return "weighted_sum of " + std::to_string(job.inputs.count()) + " tensors, " + std::to_string(job.inputs.size) +
         " elements";
}

template <class T>
void sum_whole(const SumJob& job, int head, std::size_t vectors, const Stream& stream) {
  Whole<T> p{};
  p.out = reinterpret_cast<T*>(static_cast<char*>(job.out.data) + head * sizeof(T));
  for (int k = 0; k < job.inputs.count(); ++k) {
    p.tensors[k] = reinterpret_cast<const T*>(moved(job.inputs.tensors[k].data, job.out.dtype, head));
    p.weights[k] = job.weights[k];
  }
  p.found = job.found_weights;
  p.vectors = static_cast<std::int64_t>(vectors);
  p.count = job.inputs.count();
  const auto kernel = p.found ? found_weighted_sum_kernel<T> : weighted_sum_kernel<T>;
  launch(describe(job), stream, kernel, {blocks_of(vectors, kThreads), kThreads}, p);
}

// Collects jobs and launches them whenever the table is full.
class Pending {
 public:
  explicit Pending(const Stream& stream) : stream_(stream) { begin(); }

  // The elements begin .. end - 1 of a job, cut `head` elements after the first of them.
  void add(const SumJob& job, std::size_t begin, std::size_t end, int head) {
    if (begin == end) return;
    const unsigned count = static_cast<unsigned>(job.inputs.count());
    if (table_.count == kRows || table_.inputs + count > kInputs || !reaches(job.found_weights)) flush();
    const auto part = [&](const void* data, int dtype) {
      return source({moved(data, dtype, static_cast<std::int64_t>(begin)), dtype}, head);
    };
    Row& row = table_.rows[table_.count++];
    row.out = part(job.out.data, job.out.dtype);
    row.size = static_cast<std::int64_t>(end - begin);
    row.first_tile = table_.tiles;
    row.first_input = table_.inputs;
    row.found = found_at(job.found_weights);
    row.count = static_cast<std::uint8_t>(count);
    row.shift = static_cast<std::uint8_t>((kVector - head) % kVector);
    for (unsigned k = 0; k < count; ++k) {
      table_.tensors[table_.inputs] = part(job.inputs.tensors[k].data, job.inputs.tensors[k].dtype);
      table_.weights[table_.inputs++] = job.weights[k];
    }
    table_.tiles += tiles_of(row.size, row.shift, kThreads);
  }

  void flush() {
    if (table_.count == 0) return;
    const std::string what = "weighted_sum of a table of " + std::to_string(table_.count) + " tensors";
    launch(what, stream_, weighted_sum_table_kernel, {table_.tiles, kThreads}, table_);
    begin();
  }

 private:
  // Rows and inputs are written when they are added: zeros would take a call as long as its checks do.
  void begin() {
    table_.found = nullptr;
    table_.count = 0;
    table_.inputs = table_.tiles = 0;
  }

  // Whether the table can say where these weights lie: in the memory that follows the first ones.
  bool reaches(const float* found) const {
    return !found || !table_.found || (found >= table_.found && found - table_.found <= INT32_MAX);
  }

  std::int32_t found_at(const float* found) {
    if (!found) return kGiven;
    if (!table_.found) table_.found = found;
    return static_cast<std::int32_t>(found - table_.found);
  }

  Stream stream_;
  Table table_;
};

}  // namespace

void weighted_sum(const std::vector<SumJob>& jobs, const Stream& stream) {
  Pending pending(stream);
  for (const SumJob& job : jobs) {
    const Array out{job.out.data, job.out.dtype};
    const std::size_t head = std::min<std::size_t>(head_of(out), job.inputs.size);
    const std::size_t vectors = (job.inputs.size - head) / kVector, end = head + vectors * kVector;
    if ((jobs.size() > 1 && job.inputs.size < kLarge) || vectors == 0 ||
        !uniform(job.inputs, out, static_cast<int>(head))) {
      pending.add(job, 0, job.inputs.size, static_cast<int>(head));
      continue;
    }
    const auto whole = out.dtype == kFloat32    ? sum_whole<float>
                       : out.dtype == kBFloat16 ? sum_whole<BFloat16>
                                                : sum_whole<Float16>;
    whole(job, static_cast<int>(head), vectors, stream);
    pending.add(job, 0, head, 0);
    pending.add(job, end, job.inputs.size, 0);
  }
  pending.flush();
}

}  // namespace fastmerge::cuda
