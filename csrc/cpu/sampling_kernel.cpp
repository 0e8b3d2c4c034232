// Compiled once per instruction set, inside namespace mstar::MSTAR_ISA. Plain loops without branches, shaped so that
// the compiler vectorises them for each set; intrinsics only where it cannot (compress).
#include "cpu/sampling_kernel.h"

#include <bit>
#include <cfloat>
#if defined(__AVX512F__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 warns inside its own intrinsics
#endif

namespace mstar::MSTAR_ISA {
namespace {

constexpr int kBlock = kSamplingBlock;
[[maybe_unused]] constexpr int kHashChunk = 64;
constexpr float kLog2e = 1.44269504088896341f;

// e^y for y <= 0, relative error below 2e-7. Below -87 the result stays at e^-87, about 1.6e-38: no denormals.
inline float exp_nonpositive(float y) {
  y = y > -87.0f ? y : -87.0f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = y * kLog2e + kMagic;
  const float n = shifted - kMagic;
  const float r = (y - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  float p = 0.0013814433f;
  p = p * r + 0.0083687967f;
  p = p * r + 0.041668396f;
  p = p * r + 0.1666652f;
  p = p * r + 0.49999994f;
  p = p * (r * r) + r + 1.0f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23));
}

// The same in double precision; below -700 it stays at e^-700. Taylor to r^13: the rest is below 1e-17.
inline double exp_nonpositive(double y) {
  y = y > -700.0 ? y : -700.0;
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = y * 1.44269504088896340736 + kMagic;
  const double n = shifted - kMagic;
  const double r = (y - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  return std::bit_cast<double>(std::bit_cast<std::uint64_t>(p) + (std::bit_cast<std::uint64_t>(shifted) << 52));
}

inline float from_half(std::uint16_t half) {
  const std::uint32_t magnitude = half & 0x7FFFu;
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const float normal = std::bit_cast<float>((magnitude << 13) + (112u << 23));
  // A subnormal half is magnitude * 2^-24 exactly; subtracting 2^-14 from 2^-14 + that avoids denormal operands.
  const float subnormal = std::bit_cast<float>((113u << 23) + (magnitude << 13)) - std::bit_cast<float>(113u << 23);
  const float special = std::bit_cast<float>((magnitude << 13) | 0x7F800000u);
  const float finite = magnitude < 0x0400u ? subnormal : normal;
  const float value = magnitude >= 0x7C00u ? special : finite;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
}

void widen(LogitType type, const std::uint16_t* source, int n, float* out) {
  if (type == LogitType::bf16) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(source[i]) << 16);
  } else {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = from_half(source[i]);
  }
}

float block_max(const float* x, bool* bad) {
  float largest = -FLT_MAX;
  std::uint32_t unfit = 0;
#pragma omp simd reduction(max : largest) reduction(| : unfit)
  for (int i = 0; i < kBlock; ++i) {
    largest = x[i] > largest ? x[i] : largest;
    unfit |= x[i] <= FLT_MAX ? 0u : 1u;
  }
  if (unfit != 0) *bad = true;
  if (largest > -FLT_MAX) return largest;
  for (int i = 0; i < kBlock; ++i)
    if (x[i] == -FLT_MAX) return -FLT_MAX;
  return -__builtin_inff();
}

void raw_sums(const float* x, float max, double* sum, double* weighted) {
  float s = 0, w = 0;
#pragma omp simd reduction(+ : s, w)
  for (int i = 0; i < kBlock; ++i) {
    float d = x[i] - max;
    d = d > -87.0f ? d : -87.0f;
    const float e = exp_nonpositive(d);
    s += e;
    w += d * e;
  }
  *sum = s;
  *weighted = w;
}

double scaled_sum(const float* x, float max, float inverse_temperature, float above) {
  float s = 0;
#pragma omp simd reduction(+ : s)
  for (int i = 0; i < kBlock; ++i) {
    const float e = exp_nonpositive((x[i] - max) * inverse_temperature);
    s += x[i] > above ? e : 0.0f;
  }
  return s;
}

void scaled_exps(const float* x, int n, double max, double temperature, double* out) {
  const double inverse = 1.0 / temperature;
#pragma omp simd
  for (int i = 0; i < n; ++i) out[i] = exp_nonpositive((static_cast<double>(x[i]) - max) * inverse);
}

void exact_sums(const float* x, double max, double temperature, float above, double* all, double* part) {
  const double inverse = 1.0 / temperature;
  double s = 0, p = 0;
#pragma omp simd reduction(+ : s, p)
  for (int i = 0; i < kBlock; ++i) {
    const double e = exp_nonpositive((static_cast<double>(x[i]) - max) * inverse);
    s += e;
    p += x[i] > above ? e : 0.0;
  }
  *all = s;
  *part = p;
}

int hash_at_most(std::uint32_t first_id, std::uint32_t k0, std::uint32_t k1, std::uint32_t bound,
                 std::uint16_t* offsets, std::uint32_t* hashes) {
  int found = 0;
#if defined(__AVX512F__)
  const auto all = [](std::uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); };
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i token = _mm512_add_epi32(lanes, all(first_id));
  __m512i start = _mm512_add_epi32(_mm512_mullo_epi32(token, all(0x9E3779B1u)), all(k0));
  for (int i = 0; i < kBlock; i += 16) {
    __m512i v = _mm512_xor_si512(start, _mm512_srli_epi32(start, 16));
    start = _mm512_add_epi32(start, all(0x9E3779B1u * 16u));
    v = _mm512_xor_si512(_mm512_mullo_epi32(v, all(0x85EBCA6Bu)), all(k1));
    v = _mm512_xor_si512(v, _mm512_srli_epi32(v, 13));
    v = _mm512_mullo_epi32(v, all(0xC2B2AE35u));
    v = _mm512_xor_si512(v, _mm512_srli_epi32(v, 16));
    std::uint32_t hits = _mm512_cmple_epu32_mask(v, all(bound));
    if (hits == 0) continue;
    _mm512_storeu_si512(hashes + found, _mm512_maskz_compress_epi32(static_cast<__mmask16>(hits), v));
    for (; hits != 0; hits &= hits - 1) offsets[found++] = static_cast<std::uint16_t>(i + std::countr_zero(hits));
  }
#else
  std::uint32_t h[kHashChunk];
  for (int begin = 0; begin < kBlock; begin += kHashChunk) {
    std::uint32_t hit = 0;
#pragma omp simd reduction(| : hit)
    for (int i = 0; i < kHashChunk; ++i) {
      std::uint32_t v = (first_id + static_cast<std::uint32_t>(begin + i)) * 0x9E3779B1u + k0;
      v ^= v >> 16;
      v *= 0x85EBCA6Bu;
      v ^= k1;
      v ^= v >> 13;
      v *= 0xC2B2AE35u;
      v ^= v >> 16;
      h[i] = v;
      hit |= v <= bound ? 1u : 0u;
    }
    if (hit == 0) continue;
    for (int i = 0; i < kHashChunk; ++i) {
      if (h[i] > bound) continue;
      offsets[found] = static_cast<std::uint16_t>(begin + i);
      hashes[found++] = h[i];
    }
  }
#endif
  return found;
}

int gather_between(const float* x, std::uint32_t first_id, float least, float most, float* values, std::uint32_t* ids) {
  int found = 0;
#if defined(__AVX512F__)
  __m512i id = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first_id)),
                                _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  for (int i = 0; i < kBlock; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_set1_ps(least), _CMP_GE_OQ) &
                           _mm512_cmp_ps_mask(v, _mm512_set1_ps(most), _CMP_LE_OQ);
    // Compressed in a register and stored whole (found + 16 <= block): the store form is microcoded on some processors.
    _mm512_storeu_ps(values + found, _mm512_maskz_compress_ps(mask, v));
    _mm512_storeu_si512(ids + found, _mm512_maskz_compress_epi32(mask, id));
    found += __builtin_popcount(mask);
    id = _mm512_add_epi32(id, _mm512_set1_epi32(16));
  }
#else
  for (int i = 0; i < kBlock; ++i) {
    values[found] = x[i];
    ids[found] = first_id + static_cast<std::uint32_t>(i);
    found += (x[i] >= least) & (x[i] <= most) ? 1 : 0;
  }
#endif
  return found;
}

}  // namespace

extern const SamplingKernels kSamplingKernels;
const SamplingKernels kSamplingKernels = {widen,       block_max,    raw_sums,       scaled_sum,
                                          scaled_exps, exact_sums,   hash_at_most, gather_between};

}  // namespace mstar::MSTAR_ISA
