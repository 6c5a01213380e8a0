// The matching cost of one target with one query: class, L1 and generalised IoU, weighted. No torch,
// no CUDA headers, no allocation. The formulas are those of detr_fast/reference/matching_cost.py and
// reference/boxes.py, term by term, so that a cost differs from theirs by rounding only. Functions are
// static because the CPU kernels include this once for each instruction set, and the linker must not
// merge what was compiled for different ones.

#pragma once

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

// The quotient, 0 where the denominator is not positive. It is replaced before the division, so that
// a vectorising compiler has no branch to keep.
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

template <class T>
HOST_DEVICE static inline T matching_cost(const CostBox<T>& query, const CostBox<T>& target, T class_term,
                                   const CostWeights& weights) {
  const T bbox = static_cast<T>(weights.bbox) * l1_distance(query, target);
  const T labelled = static_cast<T>(weights.class_term) * class_term;
  return (bbox + labelled) - static_cast<T>(weights.giou) * generalized_iou(query, target);
}

// The class term of the focal families (Zhu et al., ICLR 2021) from the logit of the target's class.
// `Math` has exp, log and pow for T.
template <class Math, class T>
HOST_DEVICE static inline T focal_term(T logit, const FocalParameters& focal) {
  const T alpha = static_cast<T>(focal.alpha), gamma = static_cast<T>(focal.gamma);
  const T eps = static_cast<T>(focal.eps);
  // 1 - p as a sigmoid of its own: the difference would have no digit left where p is close to 1.
  const T p = T(1) / (T(1) + Math::exp(-logit)), not_p = T(1) / (T(1) + Math::exp(logit));
  const T positive = alpha * Math::pow(not_p, gamma) * -Math::log(p + eps);
  const T negative = (T(1) - alpha) * Math::pow(p, gamma) * -Math::log(not_p + eps);
  return positive - negative;
}

// exp for x <= 0, to about two units in the last place of float; what would be denormal is the
// smallest normal number instead. One straight line of arithmetic, which compilers vectorise and
// which rounds the same in every vector width.
HOST_DEVICE static inline float exp_of_negative(float x) {
  constexpr float kLowest = -87.33f;  // of the exponents of normal results
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < kLowest ? kLowest : x;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  // ln 2 in two parts, the first with so few digits that n times it is exact.
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // Taylor's polynomial of degree 7, from the last term: |r| <= ln(2) / 2.
  float y = 1.98412698e-4f;
  y = y * r + 1.38888889e-3f;
  y = y * r + 8.33333333e-3f;
  y = y * r + 4.16666667e-2f;
  y = y * r + 1.66666667e-1f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  union {
    float value;
    int bits;
  } power, rounded;
  rounded.value = shifted;
  power.bits = (rounded.bits - 0x4B400000 + 127) << 23;
  return y * power.value;
}

}  // namespace detr_fast
