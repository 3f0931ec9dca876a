// Operations on what files hold: a cell of every input is read, summed and used before the next one is read, so that
// what is done with it finds it in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "jobs.h"

namespace fastmerge::cpu {

// Where the elements of one input come from: a file, to memory for one cell; or they lie in memory (fd is -1).
struct Source {
  int fd;
  std::uint64_t offset;  // of the first byte
  bool finite;           // whether its numbers have to be finite
};

// Of the elements of each input that was read, and then of those of the output: the xxh3-64 of every cell, big-endian.
using Digests = std::vector<std::string>;

// Runs a job, whose inputs (the base first) come from sources, by cells of so many elements. Nothing where bytes cannot
// be read, all of them, or where a number is not finite that has to be.
std::optional<Digests> streamed(SumJob job, const std::vector<Source>& sources, std::size_t cell, bool finite);
std::optional<Digests> streamed(MergeJob job, const std::vector<Source>& sources, std::size_t cell, bool finite);

}  // namespace fastmerge::cpu
