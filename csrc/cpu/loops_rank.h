// Masks by rank, row by row: kernels/rank_mask.py. Part of loops.h.
#pragma once

#include "loops_ranker.h"

namespace fastmerge::cpu {
namespace {

// The high halves of the random words of the elements index .. index + n - 1; returns the first. `out` holds n + 8
// elements and a step more. Calls between() in every round, and then() after every step.
template <class Between, class Then>
FASTMERGE_INLINE const std::uint16_t* random_halves(std::uint16_t* out, const HalfWords& words, std::uint64_t index,
                                                    std::size_t n, Between between, Then then) {
  const std::uint16_t* const result = out + (index & 7);
  const auto step = [&](std::uint64_t, const H(&halves)[2 * HalfWords::kGroups]) {
    for (const H& half : halves) {
      store_as(out, half);
      out += kHalves;
    }
    then();
  };
  words.each(index >> 3, (index + n + 7) >> 3, step, between);
  return result;
}

// Sets bits of a mask that other threads also write to.
void set_bits(std::uint32_t* words, std::uint64_t index, std::uint32_t bits) {
  const int shift = static_cast<int>(index & 31);
  __atomic_fetch_or(words + (index >> 5), bits << shift, __ATOMIC_RELAXED);
  const std::uint32_t rest = shift ? bits >> (32 - shift) : 0;
  if (rest) __atomic_fetch_or(words + (index >> 5) + 1, rest, __ATOMIC_RELAXED);
}

// Sets those of n elements from an index on. Words that none but these have a part in are written.
void write_rows(std::uint32_t* words, std::uint64_t index, const std::uint64_t* bits, std::size_t n) {
  const auto some = [&](std::size_t at, std::size_t count) {
    const std::uint64_t found = bits[at / 64] >> (at % 64) | bits[at / 64 + 1] << 1 << (63 - at % 64);
    return static_cast<std::uint32_t>(found & ((std::uint64_t{1} << count) - 1));
  };
  std::size_t at = std::min<std::size_t>(n, -index & 31);
  if (at > 0) set_bits(words, index, some(0, at));
  for (; at + 32 <= n; at += 32) words[(index + at) >> 5] = some(at, 32);
  if (at < n) set_bits(words, index + at, some(at, n - at));
}

// The random numbers of some elements, which are counted meanwhile. Not inlined: among more values those of Philox
// would not stay in registers.
template <class Count>
__attribute__((noinline)) const std::uint16_t* draw_and_count(std::uint16_t* out, const HalfWords& random,
                                                              Ranker<Count>& ranker, std::size_t index, std::size_t n) {
  return random_halves(out, random, index, n, [&] { ranker.count_some(); }, [&] { ranker.count_on(); });
}

// Elements whose scale is likely that of a row.
constexpr std::size_t kSample = 1024;

template <class Count>
void rank_rows(const RankRows& rows, std::size_t first_row, std::size_t last_row) {
  Ranker<Count> ranker(rows);
  const std::size_t n = rows.length, most = ranker.together() * n, end = last_row * n;
  HalfWords random(rows.key);
  Lines<std::uint16_t> ids(most + kRowSlack), storage(most + 8 + kRowSlack + HalfWords::kStep);
  std::vector<std::uint64_t> bits(most / 64 + 2);
  std::vector<Scale> scales;
  for (const RankModel& model : rows.models) {
    const std::size_t first = first_row * n, few = std::min({kSample, most, end - first});
    scales.push_back(ranker.scale(read_buckets(ids.data(), Scale{}, model.tensor, rows.base, first, few)));
  }
  for (std::size_t index = first_row * n; index < end; index += most) {
    const std::size_t size = std::min(most, end - index);
    for (std::size_t k = 0; k < rows.models.size(); ++k) {
      const RankModel& model = rows.models[k];
      // With the scale of the last rows, as a rule.
      const auto read = [&] { return read_buckets(ids.data(), scales[k], model.tensor, rows.base, index, size); };
      H tops = read();
      const Scale wanted = ranker.scale(tops);
      if (!scales[k].serves(wanted)) {
        scales[k] = wanted;
        tops = read();
      }
      random.choose(model.model);
      ranker.begin(model, ids.data(), scales[k], largest_lane(tops));
      const std::uint16_t* const halves = draw_and_count(storage.data(), random, ranker, index, size);
      ranker.decide(bits.data(), halves, index, size);
      write_rows(model.words, index, bits.data(), size);
    }
  }
}

// Elements that are drawn together.
constexpr std::size_t kAcross = 256;

// Columns of tensors with inner > 1, kRankColumns at a time: unit u is block u % blocks of slab u / blocks.
template <class Count>
void rank_columns(const RankRows& rows, std::size_t first_unit, std::size_t last_unit) {
  const std::size_t n = rows.length, blocks = (rows.inner + kRankColumns - 1) / kRankColumns, pitch = n + kRowSlack;
  const std::size_t row_words = n / 64 + 2;
  Ranker<Count> ranker(rows);
  // Where a block has all columns, so many places of a row at a time.
  const std::size_t at_once = blocks == 1 ? std::max<std::size_t>(1, kAcross / rows.inner) : 1;
  std::uint16_t across[kAcross + kRowSlack];
  std::uint16_t storage[kAcross + 8 + HalfWords::kStep];
  Lines<std::uint16_t> keys(kRankColumns * pitch), halves(kRankColumns * pitch);
  std::vector<std::uint64_t> bits(kRankColumns * row_words);
  for (const RankModel& model : rows.models) {
    const HalfWords random(rows.key, model.model);
    for (std::size_t unit = first_unit; unit < last_unit; ++unit) {
      const std::size_t column = unit % blocks * kRankColumns, start = unit / blocks * n * rows.inner + column;
      const std::size_t width = std::min(kRankColumns, rows.inner - column);
      for (std::size_t j = 0; j < n; j += at_once) {
        const std::size_t index = start + j * rows.inner, size = std::min(at_once, n - j) * width;
        read_buckets(across, Scale{}, model.tensor, rows.base, index, size);
        const std::uint16_t* const drawn = random_halves(storage, random, index, size, [] {}, [] {});
        for (std::size_t i = 0, at = j; i < size; ++at) {
          for (std::size_t c = 0; c < width; ++c, ++i) {
            keys[c * pitch + at] = across[i];
            halves[c * pitch + at] = drawn[i];
          }
        }
      }
      for (std::size_t c = 0; c < width; ++c) {
        std::uint16_t* const own = &keys[c * pitch];
        H tops{};
        for (std::size_t j = 0; j < n; j += kHalves) tops = larger(tops, load_as<H>(own + j));
        const Scale scale = ranker.scale(tops);
        for (std::size_t j = 0; j < n; j += kHalves) store_as(own + j, scale.bucket(load_as<H>(own + j)));
        ranker.begin(model, own, scale, largest_lane(tops));
        ranker.decide(&bits[c * row_words], &halves[c * pitch], start + c, n);
      }
      for (std::size_t j = 0; j < n; ++j) {
        std::uint32_t word = 0;
        for (std::size_t c = 0; c < width; ++c)
          word |= static_cast<std::uint32_t>(bits[c * row_words + j / 64] >> (j % 64) & 1u) << c;
        set_bits(model.words, start + j * rows.inner, word);
      }
    }
  }
}

void rank_mask(const RankRows& rows, std::size_t begin, std::size_t end) {
  const bool small = rows.length <= 0xFFFF;
  const auto loop = rows.inner == 1 ? small ? rank_rows<std::uint16_t> : rank_rows<std::uint32_t>
                    : small         ? rank_columns<std::uint16_t>
                                    : rank_columns<std::uint32_t>;
  loop(rows, begin, end);
}

}  // namespace
}  // namespace fastmerge::cpu
