// Sampling of one token per row from a matrix of logits, with the log-probabilities training needs. The definition of
// every value is in mstar_kernels/reference.py; this is the same function, fast.
#pragma once

#include <cstdint>

#include "cpu/sampling_kernel.h"

namespace mstar {

struct SamplingCall {
  const void* logits;  // [., vocabulary], contiguous
  LogitType type;
  std::int64_t vocabulary;
  std::int64_t rows;
  // One value a row. The caller has checked them: logit_rows in range, temperature >= 0 and finite, top_k >= 0,
  // top_p and min_p in [0, 1].
  const std::int32_t* logit_rows;
  const float* temperature;
  const std::int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const std::uint64_t* seed;
  const std::uint64_t* problem;
  const std::int32_t* sample;
  const std::int32_t* position;
  const std::int32_t* banned_ids;  // ascending, unique, each in [0, vocabulary)
  std::int64_t num_banned;
  std::int32_t* tokens;  // [rows]
  float* records;        // [rows, 4]: raw, scaled, filtered log-probability, entropy in nats
};

// Throws std::invalid_argument naming the first row whose logits hold NaN or +inf, or no finite value; the outputs are
// then unspecified. The result of a row depends on that row alone: not on the batch or the number of threads.
void sample_tokens(const SamplingCall& call);

}  // namespace mstar
