#include <algorithm>

#include "keep.h"

namespace fastmerge::cuda {
namespace {

constexpr std::int32_t kInfinityBits = 0x7F800000;
constexpr std::int64_t kDropAll = std::int64_t{1} << 32;
// Beyond every index, with room to add to it.
constexpr std::int64_t kNever = std::int64_t{1} << 62;

Cut cut(std::int64_t threshold, std::int64_t break_index, std::int64_t offset, int shift) {
  const std::int64_t at = std::min(std::max(break_index - offset, std::int64_t{0}), kNever) + shift;
  return {at / kVector, static_cast<std::int32_t>(at % kVector), threshold_at(threshold, 1, 0),
          threshold_at(threshold, 0, 0)};
}

}  // namespace

KeepRule make_rule(const Keep& keep, std::uint64_t offset, int shift) {
  const auto from = static_cast<std::int64_t>(offset);
  KeepRule rule{};
  rule.first = from - shift;
  if (keep.rule == kRuleMask) {
    rule.kind = kKeepMask;
    rule.mask = reinterpret_cast<const std::uint32_t*>(keep.a);
  } else if (keep.rule == kRuleRandom && keep.c < kDropAll) {
    rule.kind = kKeepRandom;
    const auto drop = static_cast<std::uint32_t>(keep.c);
    for (std::uint32_t round = 0; round < kPhiloxRounds; ++round) {
      rule.random.keys[round][0] = static_cast<std::uint32_t>(keep.a) + kWeyl0 * round;
      rule.random.keys[round][1] = static_cast<std::uint32_t>(keep.a >> 32) + kWeyl1 * round;
    }
    rule.random.model = static_cast<std::uint32_t>(keep.b);
    rule.random.limit = drop & 0xFFFF0000u;
    rule.random.low = drop & 0xFFFFu;
  } else if (keep.rule == kRuleBand || keep.rule == kRuleRandom) {
    // To drop everything is to keep what exceeds all magnitudes.
    const std::int64_t none = std::int64_t{kLargestBits} + 1;
    const Keep band = keep.rule == kRuleBand ? keep : Keep{kRuleBand, none, 0, none, 0};
    rule.band = {cut(band.a, band.b, from, shift), cut(band.c, band.d, from, shift)};
    const bool top = rule.band.outside.below == kLargestBits && rule.band.inside.above <= kInfinityBits;
    rule.kind = top ? kKeepTop : kKeepBand;
  } else {
    rule.kind = kKeepAll;
  }
  return rule;
}

}  // namespace fastmerge::cuda
