// The matching cost of one target with one query: class, L1 and generalised IoU, weighted. No
// torch, no CUDA headers, no allocation. The formulas are those of
// detr_fast/reference/matching_cost.py and reference/boxes.py, term by term, so that a cost differs
// from theirs by rounding only.
//
// Costs in float are the same in every bit whatever the instruction set and the device: they are
// made of additions, multiplications, divisions and comparisons alone, which IEEE 754 rounds in one
// way. So whoever includes this compiles without contraction to fused multiply-adds, with exact
// division and with denormal numbers, and adds exponentials in the order of kSoftmaxParts.
//
// Functions are static because the CPU kernels include this once for each instruction set, and the
// linker must not merge what was compiled for different ones.

#pragma once

#include <cmath>

#include "host_device.h"

namespace detr_fast {

struct CostWeights {
  double class_term, bbox, giou;
};

struct FocalParameters {
  double alpha, gamma, eps;
};

// A box as the cost needs it: centre and size, corners and area.
template <class T>
struct CostBox {
  T cx, cy, w, h;
  T x0, y0, x1, y1;
  T area;
};

template <class T>
HOST_DEVICE static inline T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
HOST_DEVICE static inline T larger(T a, T b) {
  return a < b ? b : a;
}

// Sides are at least 0, and so short that no area of finite boxes overflows float.
template <class T>
HOST_DEVICE static inline T area(T x0, T y0, T x1, T y1) {
  constexpr T kMaxSide = static_cast<T>(0x1p62);
  const T width = smaller(larger(x1 - x0, T(0)), kMaxSide);
  const T height = smaller(larger(y1 - y0, T(0)), kMaxSide);
  return width * height;
}

// The quotient, 0 where the denominator is not positive. It is replaced before the division, so
// that a vectorising compiler has no branch to keep.
template <class T>
HOST_DEVICE static inline T ratio_or_zero(T numerator, T denominator) {
  const bool positive = denominator > 0;
  const T quotient = numerator / (positive ? denominator : T(1));
  return positive ? quotient : T(0);
}

template <class T>
HOST_DEVICE static inline CostBox<T> cost_box(T cx, T cy, T w, T h) {
  const T half = T(0.5);
  const T x0 = cx - half * w, y0 = cy - half * h, x1 = cx + half * w, y1 = cy + half * h;
  return {cx, cy, w, h, x0, y0, x1, y1, area(x0, y0, x1, y1)};
}

template <class T>
HOST_DEVICE static inline T magnitude(T a) {
  return a < 0 ? -a : a;
}

template <class T>
HOST_DEVICE static inline T l1_distance(const CostBox<T>& a, const CostBox<T>& b) {
  return ((magnitude(a.cx - b.cx) + magnitude(a.cy - b.cy)) + magnitude(a.w - b.w)) +
         magnitude(a.h - b.h);
}

// Rezatofighi et al., CVPR 2019, algorithm 1.
template <class T>
HOST_DEVICE static inline T generalized_iou(const CostBox<T>& a, const CostBox<T>& b) {
  const T overlap = area(larger(a.x0, b.x0), larger(a.y0, b.y0), smaller(a.x1, b.x1),
                         smaller(a.y1, b.y1));
  const T enclosing = area(smaller(a.x0, b.x0), smaller(a.y0, b.y0), larger(a.x1, b.x1),
                           larger(a.y1, b.y1));
  const T joined = (a.area + b.area) - overlap;
  return ratio_or_zero(overlap, joined) - ratio_or_zero(enclosing - joined, enclosing);
}

// The caller's own cost, where there is one, is added to this.
template <class T>
HOST_DEVICE static inline T matching_cost(const CostBox<T>& query, const CostBox<T>& target,
                                          T class_term, const CostWeights& weights) {
  const T bbox = static_cast<T>(weights.bbox) * l1_distance(query, target);
  const T labelled = static_cast<T>(weights.class_term) * class_term;
  return (bbox + labelled) - static_cast<T>(weights.giou) * generalized_iou(query, target);
}

// Arithmetic on one float, as Simd in cpu/simd.h does it on vectors of them: a formula over either
// stands once.
struct OneFloat {
  using Vector = float;
  HOST_DEVICE static float broadcast(float a) { return a; }
  HOST_DEVICE static float add(float a, float b) { return a + b; }
  HOST_DEVICE static float sub(float a, float b) { return a - b; }
  HOST_DEVICE static float mul(float a, float b) { return a * b; }
  // b if one of them is NaN.
  HOST_DEVICE static float max(float a, float b) { return a > b ? a : b; }
  // Of the last bits of a makes the exponent of a power of two.
  HOST_DEVICE static float power_of_last_bits(float a) {
    union {
      float value;
      unsigned bits;
    } number;
    number.value = a;
    number.bits <<= 23;
    return number.value;
  }
};

// 2^n, n >= -126, is that of the last bits of n + kPowers: 1.5 * 2^23, to which adding rounds to an
// integer, and the offset of exponents.
constexpr float kPowers = 12582912.0f + 127.0f;
constexpr float kLog2OfE = 1.44269504f;

// 2^f times 2^n for |f| <= 1/2, to one and a half units in the last place.
template <class A>
HOST_DEVICE static inline typename A::Vector scaled_power_of_two(typename A::Vector f,
                                                                 typename A::Vector n_and_powers) {
  // Of the polynomials that are 1 at 0 the one with the least relative error, in pairs of terms
  // that need not wait for each other.
  const auto square = A::mul(f, f);
  const auto pair = [&](float constant, float linear) {
    return A::add(A::mul(A::broadcast(linear), f), A::broadcast(constant));
  };
  auto y = A::mul(pair(9.67151113e-3f, 1.32646528e-3f), square);
  y = A::mul(A::add(y, pair(2.40222424e-1f, 5.55073395e-2f)), square);
  y = A::add(y, pair(1.0f, 6.93147004e-1f));
  return A::mul(y, A::power_of_last_bits(n_and_powers));
}

// exp(x - top) for x <= top, as softmax needs it: to about two units in the last place of 1, for
// the relative error grows with the difference, but the value falls faster. What is below 2^-125 is
// that.
template <class A>
HOST_DEVICE static inline typename A::Vector exp_of_difference(typename A::Vector x,
                                                               typename A::Vector top) {
  const auto exponent =
      A::max(A::broadcast(-125.0f), A::mul(A::sub(x, top), A::broadcast(kLog2OfE)));
  const auto rounded = A::add(exponent, A::broadcast(kPowers));
  return scaled_power_of_two<A>(A::sub(exponent, A::sub(rounded, A::broadcast(kPowers))), rounded);
}

HOST_DEVICE static inline float exp_of_difference(float x, float top) {
  return exp_of_difference<OneFloat>(x, top);
}

HOST_DEVICE static inline double exp_of_difference(double x, double top) { return ::exp(x - top); }

// exp for x <= 0, to about two units in the last place of float; what is below 2^-125 is that.
HOST_DEVICE static inline float exp_of_negative(float x) {
  constexpr float kLowest = -86.6433976f;  // ln(2^-125)
  x = x < kLowest ? kLowest : x;
  const float rounded = x * kLog2OfE + kPowers;
  const float n = rounded - kPowers;
  // ln 2 in two parts, the first with so few digits that n times it is exact.
  const float rest = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  return scaled_power_of_two<OneFloat>(rest * kLog2OfE, rounded);
}

HOST_DEVICE static inline double exp_of_negative(double x) { return ::exp(x); }

// log((1 + s) / (1 - s)) for |s| <= 1/3, by the series of 2 artanh(s).
HOST_DEVICE static inline float log_of_quotient(float s) {
  const float z = s * s;
  float y = 6.66666667e-2f;
  y = y * z + 7.69230769e-2f;
  y = y * z + 9.09090909e-2f;
  y = y * z + 1.11111111e-1f;
  y = y * z + 1.42857143e-1f;
  y = y * z + 0.2f;
  y = y * z + 3.33333333e-1f;
  // The leading term is added last, so that its digits are not rounded twice.
  return 2.0f * (s + s * (z * y));
}

// log(1 + x) for 0 <= x <= 1.
HOST_DEVICE static inline float log_of_one_plus(float x) {
  return log_of_quotient(x / (2.0f + x));
}

HOST_DEVICE static inline double log_of_one_plus(double x) { return ::log1p(x); }

// log of a normal positive number, or of NaN.
HOST_DEVICE static inline float log_of_normal(float x) {
  union {
    float value;
    int bits;
  } mantissa;
  mantissa.value = x;
  // x is 2^exponent times a mantissa from sqrt(1/2), whose bits these are, to sqrt(2).
  const int exponent = (mantissa.bits - 0x3F3504F3) >> 23;
  mantissa.bits -= exponent * (1 << 23);
  const float n = static_cast<float>(exponent);
  const float rest = log_of_quotient((mantissa.value - 1.0f) / (mantissa.value + 1.0f));
  const float log = n * 0.693359375f + (n * -2.12194440e-4f + rest);
  return x == x ? log : x;
}

HOST_DEVICE static inline double log_of_normal(double x) { return ::log(x); }

// p^exponent for a normal 0 < p <= 1 and exponent >= 0.
HOST_DEVICE static inline float power_of_probability(float p, float exponent) {
  return exp_of_negative(exponent * log_of_normal(p));
}

HOST_DEVICE static inline double power_of_probability(double p, double exponent) {
  return ::pow(p, exponent);
}

// The class term of the focal families (Zhu et al., ICLR 2021) from the logit of the target's
// class. kEps: whether eps is not 0; kSquare: whether gamma is 2. They are parameters of the
// template because a compiler vectorises no loop with these branches in it.
template <bool kEps, bool kSquare, class T>
HOST_DEVICE static inline T focal_term(T logit, const FocalParameters& focal) {
  const T alpha = static_cast<T>(focal.alpha), gamma = static_cast<T>(focal.gamma);
  const T eps = static_cast<T>(focal.eps);
  // The smaller of p and 1 - p from an exponential of its own: a difference from 1 would have no
  // digit left where the other is close to 1.
  const T decay = exp_of_negative(-magnitude(logit));
  const T larger_part = T(1) / (T(1) + decay), smaller_part = decay * larger_part;
  const T p = logit < 0 ? smaller_part : larger_part;
  const T not_p = logit < 0 ? larger_part : smaller_part;
  T minus_log_p, minus_log_not_p;
  if (kEps) {
    minus_log_p = -log_of_normal(p + eps);
    minus_log_not_p = -log_of_normal(not_p + eps);
  } else {
    const T common = log_of_one_plus(decay);
    minus_log_p = common + larger(-logit, T(0));
    minus_log_not_p = common + larger(logit, T(0));
  }
  const T power_of_p = kSquare ? p * p : power_of_probability(p, gamma);
  const T power_of_not_p = kSquare ? not_p * not_p : power_of_probability(not_p, gamma);
  return (alpha * power_of_not_p) * minus_log_p - ((T(1) - alpha) * power_of_p) * minus_log_not_p;
}

// The class term of softmax is -exp_of_difference(logit, largest) * inverse. `largest` is that of a
// query's logits, which NaN does not raise; `inverse` is that of the sum of
// exp_of_difference(logit, largest) over them, NaN if there is one among them.
//
// Sums are kept in as many parts on every machine, so that they round alike. With `even` the
// largest multiple of kSoftmaxParts in the number of logits and `rest` what is left: logit c < even
// is added to part c % kSoftmaxParts, in the order of c, and logit even + k to part kSoftmaxParts -
// rest + k; then part k + h to part k for h = 8, 4, 2, 1.
constexpr int kSoftmaxParts = 16;

// Costs that are NaN, infinite or larger in size than `largest` are replaced by `stand_in`.
struct CostRange {
  double largest, stand_in;
};

template <class T>
HOST_DEVICE static inline T within_range(T cost, const CostRange& range) {
  return magnitude(cost) <= static_cast<T>(range.largest) ? cost : static_cast<T>(range.stand_in);
}

// Where costs that are not finite forbid their pair, so do those beyond this size: what outweighs
// any sum of them, below, is finite in float.
constexpr double kLargestAllowed = 0x1p90;

// A cost so large that every pair fewer that has it is worth any change of the others, for `pairs`
// pairs of costs up to `largest_allowed` in size. It stands for forbidden pairs where they leave no
// full matching; what is matched at this cost is no match.
HOST_DEVICE static inline double last_resort(double largest_allowed, long long pairs) {
  return largest_allowed > 0 ? 4.0 * static_cast<double>(pairs) * largest_allowed : 1.0;
}

}  // namespace detr_fast
