#include "cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/sampling_filter.h"

namespace mstar {
namespace {

constexpr float kNegativeInfinity = -__builtin_inff();

enum class RowState : std::uint8_t { good, not_a_number, nothing_finite };

// splitmix64
std::uint64_t mix(std::uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::uint64_t row_key(std::uint64_t seed, std::uint64_t problem, std::int64_t sample, std::int64_t position) {
  return mix(mix(mix(mix(seed) ^ problem) ^ static_cast<std::uint64_t>(sample)) ^ static_cast<std::uint64_t>(position));
}

RowState view_row(const SamplingCall& call, std::int64_t logit_row, const SamplingKernels& kernels, RowView& row) {
  const std::int64_t V = call.vocabulary;
  const std::int64_t num_blocks = (V + kSamplingBlock - 1) / kSamplingBlock;
  row.vocabulary = V;
  row.blocks.resize(num_blocks);
  row.block_max.resize(num_blocks);
  if (row.patched.size() < static_cast<std::size_t>(num_blocks) * kSamplingBlock) {
    row.patched.resize(num_blocks * kSamplingBlock);
  }
  bool bad = false;
  float max = kNegativeInfinity;
  std::int64_t max_block = 0, next_banned = 0;
  for (std::int64_t b = 0; b < num_blocks; ++b) {
    const std::int64_t begin = b * kSamplingBlock;
    const int n = static_cast<int>(std::min<std::int64_t>(kSamplingBlock, V - begin));
    const bool banned = next_banned < call.num_banned && call.banned_ids[next_banned] < begin + n;
    float* patched = row.patched.data() + begin;
    if (call.type != LogitType::fp32) {
      kernels.widen(call.type, static_cast<const std::uint16_t*>(call.logits) + logit_row * V + begin, n, patched);
      row.blocks[b] = patched;
    } else {
      const float* source = static_cast<const float*>(call.logits) + logit_row * V + begin;
      row.blocks[b] = source;
      if (banned || n < kSamplingBlock) {
        std::memcpy(patched, source, n * sizeof(float));
        row.blocks[b] = patched;
      }
    }
    std::fill(patched + n, patched + (n < kSamplingBlock ? kSamplingBlock : n), kNegativeInfinity);
    for (; next_banned < call.num_banned && call.banned_ids[next_banned] < begin + n; ++next_banned) {
      patched[call.banned_ids[next_banned] - begin] = kNegativeInfinity;
    }
    row.block_max[b] = kernels.block_max(row.blocks[b], &bad);
    if (row.block_max[b] > max) {
      max = row.block_max[b];
      max_block = b;
    }
  }
  if (bad) return RowState::not_a_number;
  if (max == kNegativeInfinity) return RowState::nothing_finite;
  row.max = max;
  const float* at = std::find(row.blocks[max_block], row.blocks[max_block] + kSamplingBlock, max);
  row.argmax = static_cast<std::int32_t>(max_block * kSamplingBlock + (at - row.blocks[max_block]));
  return RowState::good;
}

struct RawSums {
  double sum = 0, weighted = 0;
};

RawSums raw_sums(const RowView& row, const SamplingKernels& kernels) {
  RawSums sums;
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if (static_cast<double>(row.block_max[b]) - row.max < kNegligible) continue;
    double sum, weighted;
    kernels.raw_sums(row.blocks[b], row.max, &sum, &weighted);
    sums.sum += sum;
    sums.weighted += weighted;
  }
  return sums;
}

double kept_sum(const RowView& row, double temperature, const Cut& cut, const SamplingKernels& kernels) {
  double sum = scaled_sum_above(row, temperature, cut.above, kernels);
  if (cut.ties > 0) sum += static_cast<double>(cut.ties) * std::exp((double{cut.above} - row.max) / temperature);
  return sum;
}

// argmax over the kept ids of (x - max) / temperature + Gumbel noise, among scores of at least `best`; -1 when there is
// none. Noise is -log(E) with E >= h * 2^-32, so per block the best score so far and the block's largest logit give the
// largest hash that can still win; only ids at or below it are looked at, and few of these need the exact noise.
std::int64_t draw_above(double best, const RowView& row, double temperature, std::uint64_t key, const Cut& cut,
                        const SamplingKernels& kernels) {
  constexpr double kLargestNoise = 46.0;  // v >= 2^-65, so -log(E) < 45.1
  constexpr float kScale = 4294967296.0f * (1 + 1e-4f);  // the margin covers single precision
  const auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::uint16_t offsets[kSamplingBlock];
  std::uint32_t hashes[kSamplingBlock];
  std::int64_t token = -1;
  const auto visit = [&](std::size_t b) {
    const float block_max = row.block_max[b];
    if (block_max < cut.above || block_max == kNegativeInfinity) return;
    const double needed = best - (static_cast<double>(block_max) - row.max) / temperature;
    if (needed > kLargestNoise) return;
    const float limit = std::exp(static_cast<float>(-needed)) * kScale + 1.0f;
    const std::uint32_t bound = limit < 4294967040.0f ? static_cast<std::uint32_t>(limit) : 0xFFFFFFFFu;
    const auto first_id = static_cast<std::uint32_t>(b * kSamplingBlock);
    const int found = kernels.hash_at_most(first_id, k0, k1, bound, offsets, hashes);
    const float* x = row.blocks[b];
    for (int i = 0; i < found; ++i) {
      const float value = x[offsets[i]];
      const std::uint32_t id = first_id + offsets[i];
      if (!(value > cut.above || (value == cut.above && id <= cut.last_tie)) || value == kNegativeInfinity) continue;
      const double scaled = (static_cast<double>(value) - row.max) / temperature;
      if (static_cast<float>(hashes[i]) > std::exp(static_cast<float>(scaled - best)) * kScale + 1.0f) continue;
      const double r = token_hash(id, k0 ^ 0x68E31DA4u, k1 ^ 0xB5297A4Du);
      const double v = (hashes[i] + (r + 0.5) * 0x1p-32) * 0x1p-32;
      const double score = scaled - std::log(-std::log1p(-v));
      if (score > best || (score == best && (token < 0 || id < token))) {
        best = score;
        token = id;
      }
    }
  };
  const std::size_t first = row.argmax / kSamplingBlock;
  visit(first);
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if (b != first) visit(b);
  }
  return token;
}

// `kept` is the sum of e^((x - max) / temperature) over the kept ids. The best score exceeds log(kept) - log(3) with
// probability 1 - e^-3; starting from there spares the scoring of early ids that are soon beaten.
std::int32_t draw(const RowView& row, double temperature, std::uint64_t key, const Cut& cut, double kept,
                  const SamplingKernels& kernels) {
  std::int64_t token = draw_above(std::log(kept / 3.0), row, temperature, key, cut, kernels);
  if (token < 0) token = draw_above(-__builtin_inf(), row, temperature, key, cut, kernels);
  return static_cast<std::int32_t>(token);
}

// What consecutive rows over the same logits share.
struct Statistics {
  RawSums raw;
  double temperature = -1;
  double sum = 0;
};

void sample_row(const SamplingCall& call, std::int64_t r, const RowView& row, Statistics& statistics,
                const SamplingKernels& kernels) {
  const double temperature = call.temperature[r];
  std::int32_t token = row.argmax;
  double scaled = 0, filtered = 0;
  if (temperature > 0) {
    if (statistics.temperature != temperature) {
      statistics.temperature = temperature;
      statistics.sum = temperature == 1.0 ? statistics.raw.sum
                                          : scaled_sum_above(row, temperature, kNegativeInfinity, kernels);
    }
    const Filters filters{temperature, call.top_k[r], call.top_p[r], call.min_p[r]};
    const Cut cut = filter_row(row, filters, statistics.sum, kernels);
    const bool cuts = cut.above != kNegativeInfinity;
    const double kept = cuts ? kept_sum(row, temperature, cut, kernels) : statistics.sum;
    token = draw(row, temperature, row_key(call.seed[r], call.problem[r], call.sample[r], call.position[r]), cut, kept,
                 kernels);
    const double s = (double{row.blocks[token / kSamplingBlock][token % kSamplingBlock]} - row.max) / temperature;
    scaled = s - std::log(statistics.sum);
    filtered = s - std::log(kept);
  }
  const double d = double{row.blocks[token / kSamplingBlock][token % kSamplingBlock]} - row.max;
  const double log_sum = std::log(statistics.raw.sum);
  call.tokens[r] = token;
  float* record = call.records + 4 * r;
  // Rounding may leave a certain token a hair above probability one.
  record[0] = static_cast<float>(std::min(d - log_sum, 0.0));
  record[1] = static_cast<float>(std::min(scaled, 0.0));
  record[2] = static_cast<float>(std::min(filtered, 0.0));
  record[3] = static_cast<float>(std::max(log_sum - statistics.raw.weighted / statistics.raw.sum, 0.0));
}

}  // namespace

const SamplingKernels& sampling_kernels(Isa isa) {
  switch (isa) {
#if MSTAR_HAS_AVX512
    case Isa::avx512:
      return avx512::kSamplingKernels;
#endif
#if MSTAR_HAS_AVX2
    case Isa::avx2:
      return avx2::kSamplingKernels;
#endif
    default:
      return portable::kSamplingKernels;
  }
}

void sample_tokens(const SamplingCall& call) {
  const SamplingKernels& kernels = sampling_kernels(active_isa());
  // A task is a run of rows over the same logits row, short enough that every thread gets one.
  const std::int64_t longest = (call.rows + num_threads() - 1) / num_threads();
  std::vector<std::int64_t> begins;
  for (std::int64_t r = 0; r < call.rows; ++r) {
    if (r == 0 || call.logit_rows[r] != call.logit_rows[r - 1] || r - begins.back() >= longest) begins.push_back(r);
  }
  begins.push_back(call.rows);
  std::vector<RowState> states(call.rows, RowState::good);
  parallel_for(static_cast<std::int64_t>(begins.size()) - 1, [&](std::int64_t task) {
    static thread_local RowView row;
    const RowState state = view_row(call, call.logit_rows[begins[task]], kernels, row);
    if (state != RowState::good) {
      states[begins[task]] = state;
      return;
    }
    Statistics statistics;
    statistics.raw = raw_sums(row, kernels);
    for (std::int64_t r = begins[task]; r < begins[task + 1]; ++r) sample_row(call, r, row, statistics, kernels);
  });
  for (std::int64_t r = 0; r < call.rows; ++r) {
    if (states[r] == RowState::good) continue;
    throw std::invalid_argument("sample_tokens: row " + std::to_string(r) + " (logits row " +
                                std::to_string(call.logit_rows[r]) + ") " +
                                (states[r] == RowState::not_a_number
                                     ? "holds NaN or +inf; allowed: finite values and -inf"
                                     : "has no finite logit outside banned_ids; allowed: at least one"));
  }
}

}  // namespace mstar
