#include "keep.h"

namespace fastmerge::cuda {
namespace {

constexpr std::int64_t kDropAll = std::int64_t{1} << 32;

}  // namespace

KeepRule make_rule(const Keep& keep, std::uint64_t offset, int shift) {
  const auto from = static_cast<std::int64_t>(offset);
  KeepRule rule{};
  rule.first = from - shift;
  rule.shift = shift;
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
    rule.band = {{cut_at(band.a, band.b, from, shift), cut_at(band.c, band.d, from, shift)}, band.inside, band.outside};
    const bool open = !band.outside && rule.band.cuts.outside.below == kLargestBits;
    rule.kind = open && (band.inside || rule.band.cuts.inside.above <= kInfinityBits) ? kKeepTop : kKeepBand;
  } else {
    rule.kind = kKeepAll;
  }
  return rule;
}

}  // namespace fastmerge::cuda
