#include "cpu/step_rewards.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.h"

namespace mstar {
namespace {

using namespace rewards;

const Kernel& kernel_for(Isa isa) {
  if (isa > active_isa()) {
    throw std::invalid_argument(std::string("step_rewards: isa ") + isa_name(isa) + " cannot run here; the widest is " +
                                isa_name(active_isa()));
  }
  switch (isa) {
#if MSTAR_HAS_AVX512
    case Isa::avx512:
      return avx512::step_rewards_kernel;
#endif
#if MSTAR_HAS_AVX2
    case Isa::avx2:
      return avx2::step_rewards_kernel;
#endif
    default:
      return portable::step_rewards_kernel;
  }
}

// The score of a step, in [0, 1]. Exponents are at most 0, so nothing overflows.
float score_of(const float* logits, int labels, Head head) {
  if (std::any_of(logits, logits + labels, [](float x) { return std::isnan(x); })) {
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (std::any_of(logits, logits + labels, [](float x) { return std::isinf(x); })) {
    return std::numeric_limits<float>::infinity();
  }
  if (head == Head::sigmoid) {
    const float e = std::exp(-std::fabs(logits[0]));
    return (logits[0] >= 0 ? 1.0f : e) / (1.0f + e);
  }
  const float max = *std::max_element(logits, logits + labels);
  float sum = 0;
  for (int i = 0; i < labels; ++i) sum += std::exp(logits[i] - max);
  return std::exp(logits[0] - max) / sum;
}

float reduce(const float* scores, int steps, int weakest, Reduction reduction) {
  switch (reduction) {
    case Reduction::mean: {
      float sum = 0;
      for (int i = 0; i < steps; ++i) sum += scores[i];
      return sum / static_cast<float>(steps);
    }
    case Reduction::product: {
      float product = 1;
      for (int i = 0; i < steps; ++i) product *= scores[i];
      return product;
    }
    case Reduction::last:
      return scores[steps - 1];
    default:
      return scores[weakest];
  }
}

void score_response(const StepRewards& call, const Kernel& kernel, const float* label_rows, std::int64_t n,
                    float* logits) {
  const std::int32_t begin = call.response_steps[n], end = call.response_steps[n + 1];
  for (std::int32_t step = begin; step < end; ++step) {
    const std::int64_t first = static_cast<std::int64_t>(call.step_positions[step]) * call.dim;
    kernel.dots(call.hidden, call.hidden_dtype, first, call.dim, label_rows, call.labels, logits);
    if (call.bias != nullptr) {
      for (int i = 0; i < call.labels; ++i) logits[i] += call.bias[i];
    }
    call.scores[step] = score_of(logits, call.labels, call.head);
  }
  const float* const scores = call.scores + begin;
  const int steps = end - begin;
  call.weakest[n] = static_cast<std::int32_t>(std::min_element(scores, scores + steps) - scores);
  call.reduced[n] = reduce(scores, steps, call.weakest[n], call.reduction);
}

}  // namespace

void step_rewards(const StepRewards& call, Isa isa) {
  constexpr int kStepsPerTask = 16;  // at least
  const Kernel& kernel = kernel_for(isa);

  const float* label_rows = static_cast<const float*>(call.label_rows);
  std::vector<float> widened;
  if (call.label_dtype != Dtype::float32) {
    widened.resize(static_cast<std::size_t>(call.labels) * call.dim);
    for (int i = 0; i < call.labels; ++i) {
      const std::int64_t first = static_cast<std::int64_t>(i) * call.dim;
      kernel.widen(call.label_rows, call.label_dtype, first, call.dim, widened.data() + first);
    }
    label_rows = widened.data();
  }

  std::vector<std::int64_t> begins{0};
  for (std::int64_t n = 1; n < call.responses; ++n) {
    if (call.response_steps[n] - call.response_steps[begins.back()] >= kStepsPerTask) begins.push_back(n);
  }
  begins.push_back(call.responses);
  parallel_for(static_cast<std::int64_t>(begins.size()) - 1, [&](std::int64_t task) {
    static thread_local std::vector<float> logits;
    logits.resize(call.labels);
    for (std::int64_t n = begins[task]; n < begins[task + 1]; ++n) {
      score_response(call, kernel, label_rows, n, logits.data());
    }
  });
}

}  // namespace mstar
