// The kept set of top-k, top-p and min-p. All three keep a prefix of the ids sorted by (logit descending, id
// ascending), so a kept set is one cut: found by narrowing bins around the boundary, never by a full sort.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/sampling_kernel.h"

namespace mstar {

// A row seen as whole blocks: each points into the caller's logits where these are usable as they are, and otherwise
// (16-bit logits, banned ids, the last block) into `patched`.
struct RowView {
  std::vector<const float*> blocks;
  std::vector<float> block_max;
  std::vector<float> patched;
  std::int64_t vocabulary = 0;
  float max = 0;
  std::int32_t argmax = 0;  // lowest id among equals
};

inline constexpr double kNegligible = -60.0;  // a block this far below the maximum, in nats, adds nothing to a sum

// Sum of e^((x - max) / temperature) over x > above, relative error at most 4e-6.
double scaled_sum_above(const RowView& row, double temperature, float above, const SamplingKernels& kernels);

// Kept: x > above, or x == above and id <= last_tie.
struct Cut {
  float above = -__builtin_inff();
  std::int64_t last_tie = -1;
  std::int64_t ties = 0;  // ids kept by the second clause
};

struct Filters {
  double temperature;
  std::int32_t top_k;  // 0: off
  float top_p;         // 1: off
  float min_p;         // 0: off
};

// `scaled_sum` is scaled_sum_above(row, temperature, -inf).
Cut filter_row(const RowView& row, const Filters& filters, double scaled_sum, const SamplingKernels& kernels);

}  // namespace mstar
