// Vectors of the instruction set that the including file is compiled for. Include it from per-ISA sources only:
// everything is in an anonymous namespace, so that no two instruction sets share a symbol.
//
// fma() is explicit, never left to the compiler's contraction: two code paths that must agree bit for bit
// (attention by lane and by key) do so only when each fuses the same operations.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace mstar {
namespace {  // NOLINT: deliberate, see above

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * kWidth)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline IntVec load(const std::int32_t* p) {
  IntVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }  // folds to a broadcast; x + 0 would not, for it turns -0 into 0

#if defined(__AVX512F__)
inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#elif defined(__AVX2__)
inline Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline float fma(float a, float b, float c) { return a * b + c; }
#endif

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 127; 0 below -126.5, so 0 for -infinity; exactly 1 for 0. Relative error below 2e-7.
// Coefficients: a minimax fit of (2^x - 1) / x on [-1/2, 1/2] of degree 5, relative error 2e-9.
inline Vec exp2(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  x = max(x, splat(-127.0f));
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p = splat(1.535336101e-04f);
  p = fma(p, f, splat(1.339887525e-03f));
  p = fma(p, f, splat(9.618437368e-03f));
  p = fma(p, f, splat(5.550332469e-02f));
  p = fma(p, f, splat(2.402264791e-01f));
  p = fma(p, f, splat(6.931472029e-01f));
  p = fma(p, f, splat(1.0f));
  IntVec bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + (127 - 0x4B400000)) << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Relative error below 3e-7. Small arguments by an odd minimax polynomial (relative error 5e-9 on |x| < 0.625).
inline Vec tanh(Vec x) {
  const Vec bound = splat(10.0f);
  const Vec clamped = max(Vec{} - bound, Vec{} - max(Vec{} - bound, Vec{} - x));
  const Vec large = splat(1.0f) - splat(2.0f) / (exp2(clamped * splat(2.885390082f)) + splat(1.0f));
  const Vec z = x * x;
  Vec p = splat(-5.704984755e-03f);
  p = fma(p, z, splat(2.063908580e-02f));
  p = fma(p, z, splat(-5.373971486e-02f));
  p = fma(p, z, splat(1.333144220e-01f));
  p = fma(p, z, splat(-3.333328194e-01f));
  const Vec small = fma(p * z, x, x);
  const IntVec is_small = (x < splat(0.625f)) & (x > splat(-0.625f));
  return is_small ? small : large;
}

// The compile-time list 0 .. kWidth - 1. (Not std::integer_sequence: nothing of std is instantiated per ISA.)
template <int... J>
struct Lanes {};
template <int N, int... J>
struct MakeLanes : MakeLanes<N - 1, N - 1, J...> {};
template <int... J>
struct MakeLanes<0, J...> {
  using Type = Lanes<J...>;
};

template <int kStep, int... J>
inline void exchange(Vec& a, Vec& b, Lanes<J...>) {
  const Vec low = __builtin_shufflevector(a, b, ((J & kStep) ? kWidth + J - kStep : J)...);
  const Vec high = __builtin_shufflevector(a, b, ((J & kStep) ? kWidth + J : J + kStep)...);
  a = low;
  b = high;
}

template <int kStep>
inline void transpose_from(Vec* r) {
  if constexpr (kStep < kWidth) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if ((i & kStep) == 0) exchange<kStep>(r[i], r[i + kStep], typename MakeLanes<kWidth>::Type{});
    }
    transpose_from<kStep * 2>(r);
  }
}

// Transposes a square of kWidth vectors in registers: log2(kWidth) rounds of two-source shuffles.
inline void transpose(Vec* r) { transpose_from<1>(r); }

}  // namespace
}  // namespace mstar
