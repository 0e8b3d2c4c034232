#include "cpu/sampling_filter.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <limits>

namespace mstar {
namespace {

constexpr int kBins = 1024;
constexpr std::size_t kSortBelow = 64;

struct Candidates {
  std::vector<float> x;
  std::vector<std::uint32_t> id;  // ascending
  std::vector<double> weight;

  void resize(std::size_t n) {
    x.resize(n);
    id.resize(n);
    weight.resize(n);
  }
};

struct Prefix {
  Cut cut;
  double before = 0;   // weight of the prefix without its last id
  double through = 0;  // with it
};

void gather(const RowView& row, float least, float most, const SamplingKernels& kernels, Candidates& out) {
  std::size_t n = 0;
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if (row.block_max[b] < least) continue;
    if (out.x.size() < n + kSamplingBlock) {
      out.x.resize(2 * n + kSamplingBlock);
      out.id.resize(2 * n + kSamplingBlock);
    }
    n += kernels.gather_between(row.blocks[b], static_cast<std::uint32_t>(b * kSamplingBlock), least, most, &out.x[n],
                                &out.id[n]);
  }
  out.resize(n);
}

// The shortest prefix whose weight, added to `before`, reaches `target`; at least one id, and everything when the
// target is never reached. Bins narrow around the boundary until what is left is small or all equal.
Prefix select_prefix(const Candidates& candidates, double before, double target) {
  static thread_local Candidates narrowed;
  static thread_local std::vector<double> bin_weight;
  static thread_local std::vector<std::uint16_t> bins;
  const Candidates* c = &candidates;
  std::size_t n = c->x.size();
  while (n > kSortBelow) {
    float low = c->x[0], high = low;
    for (std::size_t i = 1; i < n; ++i) {
      low = c->x[i] < low ? c->x[i] : low;
      high = c->x[i] > high ? c->x[i] : high;
    }
    if (low == high) break;
    const double top = high, scale = (kBins - 1) / (top - static_cast<double>(low));
    bin_weight.assign(kBins, 0.0);
    bins.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      const int bin = static_cast<int>((top - c->x[i]) * scale);
      bins[i] = static_cast<std::uint16_t>(bin);
      bin_weight[bin] += c->weight[i];
    }
    int crossing = 0;
    while (crossing + 1 < kBins && before + bin_weight[crossing] < target) before += bin_weight[crossing++];
    // When rounding keeps even the whole from reaching the target, the boundary is in the last bin, which holds `low`.
    if (narrowed.x.size() < n) narrowed.resize(n);
    std::size_t kept = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (bins[i] != crossing) continue;
      narrowed.x[kept] = c->x[i];
      narrowed.id[kept] = c->id[i];
      narrowed.weight[kept++] = c->weight[i];
    }
    c = &narrowed;
    n = kept;
  }
  std::vector<std::uint32_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint32_t>(i);
  // Stable over ids, which ascend: equal logits stay ordered by id. More than kSortBelow are left only when all equal.
  if (n <= kSortBelow) {
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return c->x[a] > c->x[b]; });
  }
  Prefix prefix;
  double weight = before;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t at = order[i];
    prefix.cut.ties = i > 0 && c->x[at] == prefix.cut.above ? prefix.cut.ties + 1 : 1;
    prefix.cut.above = c->x[at];
    prefix.cut.last_tie = c->id[at];
    prefix.before = weight;
    weight += c->weight[at];
    prefix.through = weight;
    if (weight >= target) break;
  }
  return prefix;
}

// A value that at least k logits reach: the k-th largest block maximum, or the lowest float.
float least_of_top_k(const RowView& row, std::int32_t k) {
  if (static_cast<std::size_t>(k) > row.block_max.size()) return -FLT_MAX;
  static thread_local std::vector<float> maxima;
  maxima = row.block_max;
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return std::max(maxima[k - 1], -FLT_MAX);
}

// Double precision sums of e^((x - max) / temperature): over the row, and over x > above.
struct ExactSums {
  double row = 0, above = 0;
};

ExactSums exact_sums(const RowView& row, double temperature, float above, const SamplingKernels& kernels) {
  ExactSums sums;
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if ((static_cast<double>(row.block_max[b]) - row.max) / temperature < kNegligible) continue;
    double all, part;
    kernels.exact_sums(row.blocks[b], row.max, temperature, above, &all, &part);
    sums.row += all;
    sums.above += part;
  }
  return sums;
}

void keep_only(Candidates& c, const Cut& cut) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < c.x.size(); ++i) {
    if (!(c.x[i] > cut.above || (c.x[i] == cut.above && c.id[i] <= cut.last_tie))) continue;
    c.x[kept] = c.x[i];
    c.id[kept++] = c.id[i];
  }
  c.resize(kept);
}

// The largest float below every x that passes (x - max) / temperature >= log(min_p), the comparison of the
// specification, found by bisection over the ordered bit patterns so that rounding cannot move the boundary.
float below_min_p(float max, double temperature, float min_p) {
  const double least = std::log(static_cast<double>(min_p));
  const auto ordered = [](float x) {
    const std::int32_t bits = std::bit_cast<std::int32_t>(x);
    return static_cast<std::int64_t>(bits < 0 ? std::numeric_limits<std::int32_t>::min() - std::int64_t{bits} : bits);
  };
  const auto value = [](std::int64_t key) {
    const std::int64_t bits = key < 0 ? std::numeric_limits<std::int32_t>::min() - key : key;
    return std::bit_cast<float>(static_cast<std::int32_t>(bits));
  };
  std::int64_t fails = ordered(-__builtin_inff()), passes = ordered(max);
  while (passes - fails > 1) {
    const std::int64_t middle = fails + (passes - fails) / 2;
    const bool pass = (static_cast<double>(value(middle)) - max) / temperature >= least;
    (pass ? passes : fails) = middle;
  }
  return value(fails);
}

Cut top_p_of(const Candidates& candidates, double top_p) {
  double sum = 0;
  for (double weight : candidates.weight) sum += weight;
  return select_prefix(candidates, 0.0, top_p * sum).cut;
}

// Top-p over the whole row. Bisection on the logit, in single precision, leaves a narrow band around the boundary; only
// the band is gathered. Sums in double precision settle what single precision cannot.
Cut top_p_of(const RowView& row, double temperature, double top_p, double scaled_sum, const SamplingKernels& kernels) {
  static thread_local Candidates band;
  constexpr double kError = 8e-6;  // of a comparison of two single precision sums
  constexpr int kHalvings = 7;
  const double target = top_p * scaled_sum;
  // Ids at or below `low` hold less than 1 - top_p of the mass together, so all of them are outside the prefix.
  const double least =
      row.max + temperature * std::log((1.0 - top_p) * 0.999 * scaled_sum / static_cast<double>(row.vocabulary));
  float low = std::nextafter(static_cast<float>(std::max(least, double{-FLT_MAX})), -FLT_MAX);
  float high = row.max;  // ids above it are inside the prefix
  double above_high = 0;
  for (int i = 0; i < kHalvings; ++i) {
    const float middle = low + (high - low) * 0.5f;
    if (!(middle > low && middle < high)) break;
    const double above = scaled_sum_above(row, temperature, middle, kernels);
    if (above >= target * (1 + kError)) {
      low = middle;
    } else if (above < target * (1 - kError)) {
      high = middle;
      above_high = above;
    } else {
      break;
    }
  }
  gather(row, low, high, kernels, band);
  kernels.scaled_exps(band.x.data(), static_cast<int>(band.x.size()), row.max, temperature, band.weight.data());
  const Prefix prefix = select_prefix(band, above_high, target);
  if (prefix.before < target * (1 - kError) && prefix.through >= target * (1 + kError)) return prefix.cut;
  const ExactSums exact = exact_sums(row, temperature, high, kernels);
  return select_prefix(band, exact.above, top_p * exact.row).cut;
}

}  // namespace

double scaled_sum_above(const RowView& row, double temperature, float above, const SamplingKernels& kernels) {
  const float inverse = static_cast<float>(std::min(1.0 / temperature, double{FLT_MAX}));
  double sum = 0;
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if (!(row.block_max[b] > above)) continue;
    if ((static_cast<double>(row.block_max[b]) - row.max) / temperature < kNegligible) continue;
    sum += kernels.scaled_sum(row.blocks[b], row.max, inverse, above);
  }
  return sum;
}

Cut filter_row(const RowView& row, const Filters& filters, double scaled_sum, const SamplingKernels& kernels) {
  static thread_local Candidates candidates;
  Cut cut;
  const bool by_k = filters.top_k > 0 && filters.top_k < row.vocabulary;
  const bool by_p = filters.top_p < 1.0f;
  const double top_p = std::max(double{filters.top_p}, 1e-30);  // 0 keeps one id, as any tiny share does
  if (by_k) {
    gather(row, least_of_top_k(row, filters.top_k), row.max, kernels, candidates);
    std::fill(candidates.weight.begin(), candidates.weight.end(), 1.0);
    cut = select_prefix(candidates, 0.0, filters.top_k).cut;
    if (by_p) {
      keep_only(candidates, cut);
      kernels.scaled_exps(candidates.x.data(), static_cast<int>(candidates.x.size()), row.max, filters.temperature,
                          candidates.weight.data());
      cut = top_p_of(candidates, top_p);
    }
  } else if (by_p) {
    cut = top_p_of(row, filters.temperature, top_p, scaled_sum, kernels);
  }
  if (filters.min_p > 0.0f) {
    const float above = below_min_p(row.max, filters.temperature, filters.min_p);
    if (above >= cut.above) cut = Cut{above, -1, 0};
  }
  return cut;
}

}  // namespace mstar
