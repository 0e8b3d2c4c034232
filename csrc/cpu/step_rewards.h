// Scores of the steps of responses, from final hidden states, and what each response's scores reduce to: the scoring
// head of a process reward model.
//
// The floor. Bytes: each scored row once, steps * dim * element size; the label rows stay in cache. FLOPs, 2 * steps *
// labels * dim, are below it for the one or two labels of a reward model.
//
// How. A task is a run of whole responses. A step's row is read once, widened in registers and multiplied with two
// label rows at a time; softmax or sigmoid, reduction and argmin follow while the logits are at hand. No row is copied.
//
// Order of arithmetic. A logit is summed over dim in an order that depends on dim alone, so a response's results are
// the same, bit for bit, for any thread count and whatever else is in the call.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace mstar {

enum class Head { softmax, sigmoid };
enum class Reduction { min, mean, product, last };

struct StepRewards {
  const void* hidden;      // [rows, dim]
  const void* label_rows;  // [labels, dim]; one for sigmoid; softmax gives the probability of the first
  const float* bias;       // [labels], or null
  Dtype hidden_dtype, label_dtype;
  int dim, labels;

  const std::int32_t* step_positions;  // [steps] row of `hidden`
  const std::int32_t* response_steps;  // [responses + 1]: response n owns steps [n] .. [n + 1], at least one
  std::int64_t responses;
  Head head;
  Reduction reduction;

  float* scores;          // [steps]; NaN where a logit is NaN, else infinity where one is infinite
  float* reduced;         // [responses]
  std::int32_t* weakest;  // [responses] index, in the response, of the lowest score; the first of equals
};

// Everything in range: the caller has checked. Unfit scores are left for the caller to refuse.
// `isa` may be narrower than active_isa(), for tests; a wider one throws std::invalid_argument.
void step_rewards(const StepRewards& call, Isa isa);

// The border between step_rewards.cpp and step_rewards_kernel.cpp (one table per ISA).
namespace rewards {

struct Kernel {
  // n elements of `source`, the first at index `first`, as floats.
  void (*widen)(const void* source, Dtype dtype, std::int64_t first, int n, float* out);
  // out[i] = dot(row, label_rows[i]): the row begins at element `first` of `hidden`, label_rows is [labels, dim].
  void (*dots)(const void* hidden, Dtype dtype, std::int64_t first, int dim, const float* label_rows, int labels,
               float* out);
};

}  // namespace rewards

namespace portable { extern const rewards::Kernel step_rewards_kernel; }
namespace avx2 { extern const rewards::Kernel step_rewards_kernel; }
namespace avx512 { extern const rewards::Kernel step_rewards_kernel; }

}  // namespace mstar
