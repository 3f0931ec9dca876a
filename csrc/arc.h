// The weights of a spherical interpolation, where nobody has the libm of the processor: methods/slerp.py.
//
// acos and sin of two libraries differ in their last bits. So what is computed here, of IEEE operations alone, comes
// with a bound of its distance to what the processor computes, and counts only where every number as near rounds to the
// same float32. Elsewhere, once in some hundred thousand, the processor is asked. So bits never depend on who computed
// them.
#pragma once

#include <cmath>

#include "fastmerge_math.h"

namespace fastmerge {

// Beyond this cosine the arc is a line, and a norm that is not above the least counts as 1: as in methods/slerp.py.
constexpr double kColinear = 0.9995, kTinyNorm = 1e-8;
// Positions beyond are left to the processor: `sin_of` reduces angles up to some thousand.
constexpr double kFarthest = 1024;
// What a weight may differ by, times the angle that a sine is taken of over the sine of the arc. Both ways to compute
// it stay below 2^-48 of that: a few roundings in the angle, the reduction and the sine.
constexpr double kDoubt = 0x1p-44;

// 0 <= x < 0.2; 2^-60 of it are left out.
FASTMERGE_HD double atan_of(double x) {
  const double square = x * x;
  double sum = 0;
  for (int k = 11; k >= 0; --k) sum = 1.0 / (2 * k + 1) - square * sum;
  return x * sum;
}

// |x| <= 1025 pi: multiples of pi, of which the high part times their number is exact, are taken away.
FASTMERGE_HD double sin_of(double x) {
  constexpr double kHigh = 0x1.921fb544p+1, kLow = 0x1.0b4611a626331p-33, kInverse = 0x1.45f306dc9c883p-2;
  const double turns = rint(x * kInverse);
  const double rest = (x - turns * kHigh) - turns * kLow, square = rest * rest;
  double sum = 1;
  for (int k = 11; k >= 1; --k) sum = 1 - square * (1.0 / (2 * k * (2 * k + 1))) * sum;
  const bool odd = (static_cast<int>(turns) & 1) != 0;
  return odd ? -(rest * sum) : rest * sum;
}

// acos(cosine) for |cosine| <= kColinear: the tangent of half the angle, halved three times.
FASTMERGE_HD double angle_of(double cosine) {
  double tangent = sqrt((1 - cosine) / (1 + cosine));
  for (int i = 0; i < 3; ++i) tangent = tangent / (1 + sqrt(1 + tangent * tangent));
  return 16 * atan_of(tangent);
}

FASTMERGE_HD bool is_finite(double value) { return fabs(value) <= 1.7976931348623157e308; }

// Writes the weight of the model at `angle` on an arc with this sine; returns whether it is certain.
FASTMERGE_HD bool weight_on_arc(float& weight, double angle, double sine) {
  const double value = sin_of(angle) / sine, doubt = kDoubt * fabs(angle) / sine;
  weight = static_cast<float>(value);
  return static_cast<float>(value - doubt) == static_cast<float>(value + doubt);
}

// Writes the weights of base and model, and returns whether they are certain. products: <base, base>, <base, model> and
// <model, model>.
FASTMERGE_HD bool weights_of_arc(float* weights, const double* products, double place) {
  const auto norm = [](double square) {
    const double root = sqrt(square);
    return root > kTinyNorm ? root : 1.0;
  };
  if (!is_finite(products[0]) || !is_finite(products[1]) || !is_finite(products[2])) return false;
  const double cosine = products[1] / (norm(products[0]) * norm(products[2]));
  if (fabs(cosine) > kColinear) {
    weights[0] = static_cast<float>(1 - place);
    weights[1] = static_cast<float>(place);
    return true;
  }
  if (fabs(place) > kFarthest) return false;
  const double angle = angle_of(cosine), sine = sqrt((1 - cosine) * (1 + cosine));
  const bool first = weight_on_arc(weights[0], (1 - place) * angle, sine);
  return weight_on_arc(weights[1], place * angle, sine) && first;
}

}  // namespace fastmerge
