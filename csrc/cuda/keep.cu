#include "keep.h"

#include <algorithm>
#include <limits>

namespace fastmerge::cuda {
namespace {

Cut cut(std::int64_t threshold, std::int64_t break_index, std::uint64_t offset) {
  const std::int64_t from = static_cast<std::int64_t>(offset);
  return {break_index > from ? break_index - from : 0, threshold_at(threshold, 1, 0), threshold_at(threshold, 0, 0)};
}

constexpr std::int64_t kDropAll = std::int64_t{1} << 32;

}  // namespace

Rule make_rule(const Keep& keep, std::uint64_t offset) {
  Rule rule{};
  rule.offset = static_cast<std::int64_t>(offset);
  if (keep.rule == kRuleMask) {
    rule.kind = kKeepMask;
    rule.mask = reinterpret_cast<const std::uint32_t*>(keep.a);
  } else if (keep.rule == kRuleRandom && keep.c < kDropAll) {
    rule.kind = kKeepRandom;
    const auto drop = static_cast<std::uint32_t>(keep.c);
    rule.random = {static_cast<std::uint64_t>(keep.a), static_cast<std::uint32_t>(keep.b), drop & 0xFFFF0000u,
                   drop & 0xFFFFu};
  } else if (keep.rule == kRuleBand || keep.rule == kRuleRandom) {
    // To drop everything is to keep what exceeds all magnitudes.
    const std::int64_t none = std::int64_t{kLargestBits} + 1;
    const Keep band = keep.rule == kRuleBand ? keep : Keep{kRuleBand, none, 0, none, 0};
    rule.band = {cut(band.a, band.b, offset), cut(band.c, band.d, offset)};
    rule.kind = rule.band.outside.below == kLargestBits ? kKeepTop : kKeepBand;
  } else {
    rule.kind = kKeepAll;
  }
  return rule;
}

}  // namespace fastmerge::cuda
