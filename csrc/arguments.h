// How both bindings read the arguments that kernels/*.py pass.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"

namespace fastmerge {

using Address = std::uintptr_t;
using Ints = std::vector<std::int64_t>;
using KeepTuple = std::array<std::int64_t, 5>;

inline Array array(Address address, int dtype) { return {reinterpret_cast<const void*>(address), dtype}; }
inline Output output(Address address, int dtype) { return {reinterpret_cast<void*>(address), dtype}; }

inline Group group(const std::vector<Address>& tensors, const std::vector<int>& dtypes, Address base, int base_dtype,
                   std::size_t size) {
  if (tensors.empty() || tensors.size() != dtypes.size()) {
    throw std::invalid_argument("expected one dtype for each of at least one tensor");
  }
  Group group{{}, array(base, base_dtype), size};
  for (std::size_t k = 0; k < tensors.size(); ++k) group.tensors.push_back(array(tensors[k], dtypes[k]));
  return group;
}

inline void expect(std::size_t count, const Group& group, const char* name) {
  if (count != group.tensors.size()) throw std::invalid_argument(std::string(name) + ": expected one per tensor");
}

inline std::vector<Keep> keep_rules(const std::vector<KeepTuple>& tuples) {
  std::vector<Keep> keeps;
  for (const KeepTuple& t : tuples) keeps.push_back({t[0], t[1], t[2], t[3], t[4]});
  return keeps;
}

}  // namespace fastmerge
