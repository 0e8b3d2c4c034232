// float32 from and to the two 16-bit formats. Include from per-ISA sources only (see simd.h for why).
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/dtype.h"
#include "cpu/simd.h"

namespace mstar {
namespace {

inline float float_of_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline std::uint32_t bits_of_float(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_bfloat16(std::uint16_t h) { return float_of_bits(static_cast<std::uint32_t>(h) << 16); }

inline float from_float16(std::uint16_t h) {
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  const std::uint32_t magnitude = static_cast<std::uint32_t>(h & 0x7FFF) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  if (magnitude >= 0x0F800000u) return float_of_bits(sign | 0x70000000u | magnitude);       // infinity, NaN
  return float_of_bits(sign | bits_of_float(float_of_bits(magnitude) * 5.192296858534828e33f));  // 2^112: rebias
#endif
}

inline std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = bits_of_float(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40);  // NaN
  return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline std::uint16_t to_float16(float x) {
#if defined(__F16C__)
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  const std::uint32_t bits = bits_of_float(x);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    return sign | static_cast<std::uint16_t>(bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000u);
  }
  return sign | static_cast<std::uint16_t>((magnitude - 0x38000000u + 0xFFF + ((magnitude >> 13) & 1)) >> 13);
#endif
}

// n consecutive elements, the first at index `first` of `source`.
inline void to_float(const void* source, Dtype dtype, std::int64_t first, int n, float* out) {
  if (dtype == Dtype::float32) {
    std::memcpy(out, static_cast<const float*>(source) + first, n * sizeof(float));
    return;
  }
  const std::uint16_t* halves = static_cast<const std::uint16_t*>(source) + first;
  int i = 0;
  if (dtype == Dtype::bfloat16) {
    for (; i < n; ++i) out[i] = from_bfloat16(halves[i]);
    return;
  }
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + i))));
  }
#endif
  for (; i < n; ++i) out[i] = from_float16(halves[i]);
}

inline void from_float(const float* source, Dtype dtype, std::int64_t first, int n, void* out) {
  if (dtype == Dtype::float32) {
    std::memcpy(static_cast<float*>(out) + first, source, n * sizeof(float));
    return;
  }
  std::uint16_t* halves = static_cast<std::uint16_t*>(out) + first;
  for (int i = 0; i < n; ++i) halves[i] = dtype == Dtype::bfloat16 ? to_bfloat16(source[i]) : to_float16(source[i]);
}

}  // namespace
}  // namespace mstar
