// What the kernels of sparse merges share.
#pragma once

#include <memory>

#include "keep.h"
#include "split.h"

namespace fastmerge::cuda {

// What the models of a merge are kept by and multiplied with, in shared memory: some of it is known on the device
// alone.
template <int kCount>
struct Answers {
  Band bands[kCount];
  float factors[kCount];
  unsigned missing;  // not 0: something was not found, and nothing may be written
};

// By the first warp of a block; the others see it after a barrier. rule(k) returns a model's. `found`: see MergeJob.
template <int kCount, class Rule>
__device__ inline void find_answers(Answers<kCount>& answers, int count, const float* factors, const float* found,
                                    Rule rule) {
  if (threadIdx.x >= 32) return;
  bool all = found == nullptr || found[count] == 0;
  for (int k = static_cast<int>(threadIdx.x); k < count; k += 32) {
    all = band_of(rule(k), answers.bands[k]) && all;
    answers.factors[k] = found ? found[k] : factors[k];
  }
  const unsigned missing = __ballot_sync(0xFFFFFFFFu, !all);
  if (threadIdx.x == 0) answers.missing = missing;
}

inline std::string describe(const MergeJob& job) {
  return "sparse_merge of " + std::to_string(job.inputs.count()) + " tensors, " + std::to_string(job.inputs.size) +
         " elements";
}

// Collects parts of jobs that share a kernel, and launches it whenever its table is full.
class MergeTables {
 public:
  explicit MergeTables(const Stream& stream);
  ~MergeTables();
  // The elements begin .. end - 1 of a job, cut `head` elements after the first of them. `uniform`: all tensors have
  // the dtype of the output, and vectors of all of them are aligned from the first element on.
  void add(const MergeJob& job, std::size_t begin, std::size_t end, int head, bool uniform);
  void flush();

 private:
  struct Pending;
  Stream stream_;
  std::unique_ptr<Pending> pending_;  // made when it is needed: it is large
};

}  // namespace fastmerge::cuda
