// The dot products of step_rewards, compiled once per instruction set.
#include "cpu/convert.h"
#include "cpu/simd.h"
#include "cpu/step_rewards.h"

#if defined(__AVX512F__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 warns inside its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace mstar {
namespace MSTAR_ISA {
namespace {

constexpr int kChains = 4;  // partial sums of a dot product: two labels give eight, which cover the latency of fma

// Elements [i, i + kWidth) of a row.
inline Vec load_row(const float* row, int i) { return load(row + i); }

struct Bfloat16 {
  std::uint16_t bits;
};
inline Vec load_row(const Bfloat16* row, int i) {
  typedef std::uint16_t Halves __attribute__((vector_size(2 * kWidth)));
  typedef std::uint32_t Words __attribute__((vector_size(4 * kWidth)));
  Halves halves;
  std::memcpy(&halves, row + i, sizeof halves);
  return (Vec)(__builtin_convertvector(halves, Words) << 16);
}

struct Float16 {
  std::uint16_t bits;
};
inline Vec load_row(const Float16* row, int i) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + i)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + i)));
#else
  Vec x;
  for (int j = 0; j < kWidth; ++j) x[j] = from_float16(row[i + j].bits);
  return x;
#endif
}

inline float load_one(const float* row, int i) { return row[i]; }
inline float load_one(const Bfloat16* row, int i) { return from_bfloat16(row[i].bits); }
inline float load_one(const Float16* row, int i) { return from_float16(row[i].bits); }

inline float sum_of(const Vec (&chains)[kChains]) {
  static_assert(kChains == 4);
  const Vec total = (chains[0] + chains[2]) + (chains[1] + chains[3]);
  float part[kWidth];
  store(part, total);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) part[j] += part[j + half];
  return part[0];
}

// N label rows, `dim` apart. The order of each sum does not depend on N.
template <int N, typename Element>
inline void dot(const Element* row, int dim, const float* labels, float* out) {
  Vec sum[N][kChains] = {};
  int d = 0;
  for (; d + kChains * kWidth <= dim; d += kChains * kWidth) {
    for (int c = 0; c < kChains; ++c) {
      const Vec x = load_row(row, d + c * kWidth);
      for (int j = 0; j < N; ++j) {
        sum[j][c] = fma(x, load(labels + static_cast<std::int64_t>(j) * dim + d + c * kWidth), sum[j][c]);
      }
    }
  }
  for (; d + kWidth <= dim; d += kWidth) {
    const Vec x = load_row(row, d);
    for (int j = 0; j < N; ++j) {
      sum[j][0] = fma(x, load(labels + static_cast<std::int64_t>(j) * dim + d), sum[j][0]);
    }
  }
  for (int j = 0; j < N; ++j) out[j] = sum_of(sum[j]);
  for (; d < dim; ++d) {
    const float x = load_one(row, d);
    for (int j = 0; j < N; ++j) out[j] = fma(x, labels[static_cast<std::int64_t>(j) * dim + d], out[j]);
  }
}

template <typename Element>
void dots_of(const Element* row, int dim, const float* label_rows, int labels, float* out) {
  int j = 0;
  for (; j + 2 <= labels; j += 2) dot<2>(row, dim, label_rows + static_cast<std::int64_t>(j) * dim, out + j);
  if (j < labels) dot<1>(row, dim, label_rows + static_cast<std::int64_t>(j) * dim, out + j);
}

void dots(const void* hidden, Dtype dtype, std::int64_t first, int dim, const float* label_rows, int labels,
          float* out) {
  switch (dtype) {
    case Dtype::float32:
      return dots_of(static_cast<const float*>(hidden) + first, dim, label_rows, labels, out);
    case Dtype::bfloat16:
      return dots_of(static_cast<const Bfloat16*>(hidden) + first, dim, label_rows, labels, out);
    case Dtype::float16:
      return dots_of(static_cast<const Float16*>(hidden) + first, dim, label_rows, labels, out);
  }
}

void widen(const void* source, Dtype dtype, std::int64_t first, int n, float* out) {
  to_float(source, dtype, first, n, out);
}

}  // namespace

extern const rewards::Kernel step_rewards_kernel = {widen, dots};

}  // namespace MSTAR_ISA
}  // namespace mstar
