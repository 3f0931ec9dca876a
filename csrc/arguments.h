// How both bindings read the arguments that kernels/_native.py makes.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fastmerge_math.h"
#include "jobs.h"

namespace fastmerge {

// Raised whenever the arguments of a function change: kernels/_native.py refuses an extension with another number.
constexpr int kInterface = 9;

using Address = std::uintptr_t;
using Ints = std::vector<std::int64_t>;
// Address and dtype.
using ArrayTuple = std::pair<Address, int>;
// Addresses and dtypes of the tensors, address and dtype of the base, elements.
using TensorsTuple = std::tuple<std::vector<Address>, std::vector<int>, Address, int, std::size_t>;
// The integers of kernels/keep.py, and three addresses; of a random rule row and stride in place of the first two.
using KeepTuple = std::array<std::int64_t, 8>;
// Output, inputs, weights, address of found weights.
using SumTuple = std::tuple<ArrayTuple, TensorsTuple, std::vector<float>, Address>;
// Output, inputs, factors, weights, keep rules, (vote, divide), (scale, divisor), offset, address of found factors.
using MergeTuple = std::tuple<ArrayTuple, TensorsTuple, std::vector<float>, std::vector<float>, std::vector<KeepTuple>,
                              std::pair<int, int>, std::pair<float, float>, std::uint64_t, Address>;
// Inputs, ranks.
using SelectTuple = std::pair<TensorsTuple, std::vector<std::vector<std::size_t>>>;

inline Array array(const ArrayTuple& t) { return {reinterpret_cast<const void*>(t.first), t.second}; }
inline Output output(const ArrayTuple& t) { return {reinterpret_cast<void*>(t.first), t.second}; }

inline Tensors tensors(const TensorsTuple& t) {
  const auto& [addresses, dtypes, base, base_dtype, size] = t;
  if (addresses.empty() || addresses.size() != dtypes.size()) {
    throw std::invalid_argument("expected one dtype for each of at least one tensor");
  }
  Tensors inputs{{}, array({base, base_dtype}), size};
  for (std::size_t k = 0; k < addresses.size(); ++k) inputs.tensors.push_back(array({addresses[k], dtypes[k]}));
  return inputs;
}

inline void expect(std::size_t count, const Tensors& inputs, const char* name) {
  if (count != inputs.tensors.size()) throw std::invalid_argument(std::string(name) + ": expected one per tensor");
}

inline std::vector<Keep> keep_rules(const std::vector<KeepTuple>& tuples) {
  std::vector<Keep> keeps;
  const auto row = [](std::int64_t address) { return reinterpret_cast<const std::int64_t*>(address); };
  const auto words = [](std::int64_t address) { return reinterpret_cast<std::uint32_t*>(address); };
  for (const KeepTuple& t : tuples) {
    Keep keep{t[0], t[1], t[2], t[3], t[4]};
    if (keep.rule == kRuleRandom) {
      keep.row = t[5];
      keep.stride = t[6];
      keep.drawn = words(t[7]);
    } else {
      keep.inside = row(t[5]);
      keep.outside = row(t[6]);
    }
    keeps.push_back(keep);
  }
  return keeps;
}

inline SumJob job(const SumTuple& t) {
  const auto& [out, inputs, weights, found] = t;
  SumJob job{output(out), tensors(inputs), weights, reinterpret_cast<const float*>(found)};
  expect(weights.size(), job.inputs, "weights");
  return job;
}

inline MergeJob job(const MergeTuple& t) {
  const auto& [out, inputs, factors, weights, keeps, how, scalars, offset, found] = t;
  MergeJob job{output(out),
               tensors(inputs),
               factors,
               weights,
               keep_rules(keeps),
               how.first,
               how.second != kDivideNone,
               scalars.second,
               scalars.first,
               offset,
               reinterpret_cast<const float*>(found)};
  expect(factors.size(), job.inputs, "factors");
  expect(weights.size(), job.inputs, "weights");
  expect(keeps.size(), job.inputs, "keeps");
  if (how.second == kDivideCount) job.weights.assign(weights.size(), 1.0f);
  return job;
}

inline SelectJob job(const SelectTuple& t) {
  SelectJob job{tensors(t.first), t.second};
  expect(job.ranks.size(), job.inputs, "ranks");
  for (const auto& wanted : job.ranks) {
    for (const std::size_t rank : wanted) {
      if (rank == 0 || rank >= job.inputs.size) throw std::invalid_argument("ranks: expected 0 < rank < size");
    }
  }
  return job;
}

template <class Tuple>
auto jobs(const std::vector<Tuple>& tuples) {
  std::vector<decltype(job(tuples[0]))> jobs;
  jobs.reserve(tuples.size());
  for (const Tuple& tuple : tuples) jobs.push_back(job(tuple));
  return jobs;
}

}  // namespace fastmerge
