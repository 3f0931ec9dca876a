// What the loops of one instruction set offer, and the choice among them at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "jobs.h"

namespace fastmerge::cpu {

// A model whose mask is drawn: its tensor, its number, what rank_threshold takes, and the words of the mask.
struct RankModel {
  Array tensor;
  std::uint32_t model, first;
  std::uint64_t step;
  std::uint32_t* words;
};

// Tensors [outer, length, inner] whose elements are ranked along the middle dimension.
struct RankRows {
  std::vector<RankModel> models;
  Array base;
  std::size_t length, inner;
  std::uint64_t key;
};

// Columns of a tensor with inner > 1 that are ranked together, since memory comes in cache lines.
constexpr std::size_t kRankColumns = 32;

// Magnitudes that select looks at: it counts those above `high` and collects those in low .. high, except that it only
// counts the two `atoms`. kNoAtom is no magnitude.
struct Bracket {
  std::int32_t low, high;
  std::int32_t atoms[2];
};
constexpr std::int32_t kNoAtom = -1;

struct BracketCounts {
  std::uint32_t above, atoms[2], collected;
};

// Elements beyond the last that a loop may overwrite in a buffer of ours.
constexpr std::size_t kSlack = 16;

// Loops over the elements begin .. end - 1 (or over chunks of the grid), one thread each. A "chunk" is kGrid elements.
struct Loops {
  const char* name;
  void (*weighted_sum)(const SumJob&, std::size_t begin, std::size_t end);
  void (*sparse_merge)(const MergeJob&, std::size_t begin, std::size_t end);
  // Partials are [chunks, columns]; the loops write the rows of the given chunks.
  void (*gram)(double* partials, const Tensors&, std::size_t first_chunk, std::size_t last_chunk);
  void (*norms)(double* partials, const Tensors&, const std::vector<Keep>&, int power, std::uint64_t offset,
                std::size_t first_chunk, std::size_t last_chunk);
  // Writes the deltas of one tensor (its elements when there is no base) to out[0 .. end - begin).
  void (*deltas)(float* out, Array tensor, Array base, std::size_t begin, std::size_t end);
  // At most a chunk. Writes what it collects, in order, to out (a chunk and kSlack long).
  BracketCounts (*collect)(std::uint32_t* out, Array tensor, Array base, const Bracket&, std::size_t begin,
                           std::size_t end);
  std::size_t (*count_equal)(Array tensor, Array base, std::int32_t magnitude, std::size_t begin, std::size_t end);
  // Adds to counts the histogram of bits >> 16, or, with a prefix >= 0, of the low bits of those with that prefix.
  void (*histogram)(std::uint32_t* counts, Array tensor, Array base, std::int64_t prefix, std::size_t begin,
                    std::size_t end);
  // Sets the bits of rows begin .. end - 1 in masks of zeros; where inner > 1, of so many blocks of kRankColumns rows,
  // ceil(inner / kRankColumns) for each index of the outer dimension.
  void (*rank_mask)(const RankRows&, std::size_t begin, std::size_t end);
  // Rows first_row .. last_row - 1 of out = weight + scale * up @ down, for `columns` columns.
  void (*low_rank)(Output out, Array weight, const float* up, const float* down, std::size_t columns, std::size_t rank,
                   float scale, std::size_t first_row, std::size_t last_row);
  // Writes the xxh3-64 of every `step` bytes, the last of fewer, big-endian; that of no bytes where there are none.
  void (*cell_digests)(unsigned char* digests, const unsigned char* data, std::size_t nbytes, std::size_t step);
  bool (*all_finite)(Array array, std::size_t count);
};

extern const Loops kBaseline;
#if defined(__x86_64__)
extern const Loops kAvx2;
extern const Loops kAvx512;
#endif

// The loops in use: the widest that this processor runs, unless one was chosen.
const Loops& loops();
// Chooses by name ("baseline", "avx2", "avx512"; "auto" undoes it). Throws std::invalid_argument if it cannot run here.
void choose_loops(const char* name);
// The names that run here, narrowest first.
std::vector<const char*> available_loops();

}  // namespace fastmerge::cpu
