// Divisions by tables, checked against the processor's: see tests/kernels/test_quotients.py.
#include "fastmerge_math.h"

namespace {

using namespace fastmerge;

bool same(float a, float b) { return a != a ? b != b : bit_cast<std::uint32_t>(a) == bit_cast<std::uint32_t>(b); }

// Of both ways, since kernels of many models divide without a table.
bool wrong(float numerator, float divisor, const Quotient& by) {
  const float expected = numerator / divisor;
  return !same(divided(numerator, by), expected) || !same(divided(numerator, divisor), expected);
}

}  // namespace

extern "C" {

// How many of the numerators with bits first, first + step, ... are divided wrongly by a divisor.
long wrong_numerators(float divisor, std::uint32_t first, std::uint32_t step, long count) {
  const Quotient by = quotient_of(divisor);
  long found = 0;
  for (std::uint32_t bits = first; count-- > 0; bits += step) found += wrong(bit_cast<float>(bits), divisor, by);
  return found;
}

long wrong_pairs(const std::uint32_t* numerators, const std::uint32_t* divisors, long count) {
  long found = 0;
  for (long i = 0; i < count; ++i) {
    const float divisor = bit_cast<float>(divisors[i]);
    found += divisor != 0 && wrong(bit_cast<float>(numerators[i]), divisor, quotient_of(divisor));
  }
  return found;
}

void table(double* numbers, const float* weights, int count) {
  elected_quotients(reinterpret_cast<Quotient*>(numbers), weights, count);
}
}
