// The operations of the CPU backend on whole tensors: they share the work out to threads. Contracts: kernels/*.py.
#pragma once

#include <utility>

#include "isa.h"

namespace fastmerge::cpu {

// kernels/keep.py: the cut of the magnitude order.
struct Boundary {
  std::int64_t threshold, break_index;
};

// Many small tensors at a time are shared out to threads like the parts of a large one.
void weighted_sum(const std::vector<SumJob>& jobs);
void sparse_merge(const std::vector<MergeJob>& jobs);
void gram(double* partials, const Tensors& inputs);
void norms(double* partials, const Tensors& inputs, const std::vector<Keep>& keeps, int power, std::uint64_t offset);
void magnitude_histogram(std::int64_t* counts, const Tensors& inputs, int level,
                         const std::vector<std::int64_t>& prefixes);
void equal_counts(std::int64_t* counts, const Tensors& inputs, const std::vector<std::int64_t>& thresholds);
// Overwrites the masks. The tensors are `outer` slices of others, the first of which begins at element `offset`.
void rank_mask(RankRows rows, std::size_t outer, std::uint64_t offset);
void low_rank(Output out, Array weight, const float* up, const float* down, std::size_t rows, std::size_t columns,
              std::size_t rank, float scale);

// Per job, tensor and rank, in that order, the boundary that keeps exactly that many elements.
std::vector<Boundary> select(const std::vector<SelectJob>& jobs);
// How many boundaries of this process needed the slow way, since their sample misled.
std::size_t select_fallbacks();

}  // namespace fastmerge::cpu
