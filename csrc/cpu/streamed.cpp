#include "streamed.h"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>

#include "fastmerge_math.h"
#include "isa.h"

namespace fastmerge::cpu {
namespace {

constexpr std::size_t kDigest = 8;

std::size_t item_bytes(int dtype) { return dtype == kFloat32 ? 4 : 2; }

bool read_all(int fd, std::uint64_t offset, char* into, std::size_t nbytes) {
  while (nbytes) {
    const ssize_t got = ::pread(fd, into, nbytes, static_cast<off_t>(offset));
    if (got <= 0) return false;
    into += got;
    offset += static_cast<std::uint64_t>(got);
    nbytes -= static_cast<std::size_t>(got);
  }
  return true;
}

// Adds the digest of a cell; false where a number is not finite that has to be.
bool sum(std::string& digests, Array cell, std::size_t count, bool finite) {
  if (finite && !loops().all_finite(cell, count)) return false;
  unsigned char digest[kDigest];
  const std::size_t nbytes = count * item_bytes(cell.dtype);
  loops().cell_digests(digest, static_cast<const unsigned char*>(cell.data), nbytes, std::max<std::size_t>(1, nbytes));
  digests.append(reinterpret_cast<const char*>(digest), kDigest);
  return true;
}

template <class Job>
std::optional<Digests> run(Job& job, const std::vector<Source>& sources, std::size_t cell, bool finite,
                           void (*loop)(const Job&, std::size_t, std::size_t)) {
  std::vector<Array*> inputs;
  if (job.inputs.base.data) inputs.push_back(&job.inputs.base);
  for (Array& tensor : job.inputs.tensors) inputs.push_back(&tensor);
  if (sources.size() != inputs.size()) throw std::invalid_argument("sources: expected one per input");
  if (cell == 0) throw std::invalid_argument("cell: expected at least one element");
  std::vector<char*> buffers;
  for (const Array* input : inputs) buffers.push_back(static_cast<char*>(const_cast<void*>(input->data)));

  Digests digests(inputs.size() + 1);
  for (std::size_t begin = 0; begin < job.inputs.size; begin += cell) {
    const std::size_t end = std::min(job.inputs.size, begin + cell);
    for (std::size_t k = 0; k < inputs.size(); ++k) {
      if (sources[k].fd < 0) continue;
      const int dtype = inputs[k]->dtype;
      const std::size_t size = item_bytes(dtype);
      if (!read_all(sources[k].fd, sources[k].offset + begin * size, buffers[k], (end - begin) * size)) return {};
      if (!sum(digests[k], {buffers[k], dtype}, end - begin, sources[k].finite)) return {};
      inputs[k]->data = buffers[k] - begin * size;  // loops count from the first element of the job
    }
    loop(job, begin, end);
    const char* out = static_cast<const char*>(job.out.data) + begin * item_bytes(job.out.dtype);
    if (!sum(digests.back(), {out, job.out.dtype}, end - begin, finite)) return {};
  }
  return digests;
}

}  // namespace

std::optional<Digests> streamed(SumJob job, const std::vector<Source>& sources, std::size_t cell, bool finite) {
  return run(job, sources, cell, finite, loops().weighted_sum);
}

std::optional<Digests> streamed(MergeJob job, const std::vector<Source>& sources, std::size_t cell, bool finite) {
  return run(job, sources, cell, finite, loops().sparse_merge);
}

}  // namespace fastmerge::cpu
