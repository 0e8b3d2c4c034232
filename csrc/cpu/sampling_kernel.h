// The vectorised inner loops of sampling, one table per instruction set. Everything here works on blocks of
// kSamplingBlock floats: sampling.cpp pads the last block of a row with -inf, so no loop has a tail.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace mstar {

inline constexpr int kSamplingBlock = 512;

enum class LogitType { fp32, bf16, fp16 };

struct SamplingKernels {
  // Widens n (at most a block) 16-bit logits to floats.
  void (*widen)(LogitType type, const std::uint16_t* source, int n, float* out);
  // Largest value of a block; `bad` is set when the block holds NaN or +inf, and left alone otherwise.
  float (*block_max)(const float* x, bool* bad);
  // sum of e^d, d = x - max, and sum of d * e^d.
  void (*raw_sums)(const float* x, float max, double* sum, double* weighted);
  // sum of e^((x - max) * inverse_temperature) over x > above.
  double (*scaled_sum)(const float* x, float max, float inverse_temperature, float above);
  // out[i] = e^((x[i] - max) / temperature) in double precision; n is any count.
  void (*scaled_exps)(const float* x, int n, double max, double temperature, double* out);
  // Sums of the same over a block: all of it, and x > above.
  void (*exact_sums)(const float* x, double max, double temperature, float above, double* all, double* part);
  // Offsets i in the block, ascending, with hash(first_id + i) <= bound; out holds a block. Returns how many.
  int (*hash_at_most)(std::uint32_t first_id, std::uint32_t k0, std::uint32_t k1, std::uint32_t bound,
                      std::uint16_t* offsets, std::uint32_t* hashes);
  // Values least <= x <= most of the block with their ids, ascending; both outputs have room for a block. Returns how
  // many.
  int (*gather_between)(const float* x, std::uint32_t first_id, float least, float most, float* values,
                        std::uint32_t* ids);
};

// The hash of the contract: `token` under the two halves of a row key.
inline std::uint32_t token_hash(std::uint32_t token, std::uint32_t k0, std::uint32_t k1) {
  std::uint32_t x = token * 0x9E3779B1u + k0;
  x ^= x >> 16;
  x *= 0x85EBCA6Bu;
  x ^= k1;
  x ^= x >> 13;
  x *= 0xC2B2AE35u;
  return x ^ (x >> 16);
}

const SamplingKernels& sampling_kernels(Isa isa);

namespace portable {
extern const SamplingKernels kSamplingKernels;
}
namespace avx2 {
extern const SamplingKernels kSamplingKernels;
}
namespace avx512 {
extern const SamplingKernels kSamplingKernels;
}

}  // namespace mstar
