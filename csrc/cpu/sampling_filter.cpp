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
  std::vector<std::uint16_t> bin;

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

void gather(const RowView& row, float least, const SamplingKernels& kernels, Candidates& out) {
  std::size_t n = 0;
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if (row.block_max[b] < least) continue;
    if (out.x.size() < n + kSamplingBlock) {
      out.x.resize(2 * n + kSamplingBlock);
      out.id.resize(2 * n + kSamplingBlock);
    }
    n += kernels.gather_at_least(row.blocks[b], static_cast<std::uint32_t>(b * kSamplingBlock), least, &out.x[n],
                                 &out.id[n]);
  }
  out.resize(n);
}

// The shortest prefix whose weight reaches `target`, at least one id; everything when the target is never reached.
// Works on copies in `c`, which it narrows.
Prefix select_prefix(Candidates& c, double target) {
  static thread_local std::vector<double> bin_weight;
  double before = 0;
  std::size_t n = c.x.size();
  while (n > kSortBelow) {
    const auto [low, high] = std::minmax_element(c.x.begin(), c.x.begin() + n);
    if (*low == *high) break;
    const double top = *high, scale = (kBins - 1) / (top - static_cast<double>(*low));
    bin_weight.assign(kBins, 0.0);
    c.bin.resize(n);
    for (std::size_t i = 0; i < n; ++i) {
      const int bin = static_cast<int>((top - c.x[i]) * scale);
      c.bin[i] = static_cast<std::uint16_t>(bin);
      bin_weight[bin] += c.weight[i];
    }
    int crossing = 0, last_used = 0;
    for (; crossing < kBins; ++crossing) {
      if (bin_weight[crossing] > 0) last_used = crossing;
      if (before + bin_weight[crossing] >= target) break;
      before += bin_weight[crossing];
    }
    if (crossing == kBins) {
      crossing = last_used;
      before -= bin_weight[crossing];
    }
    std::size_t kept = 0;
    for (std::size_t i = 0; i < n; ++i) {
      if (c.bin[i] != crossing) continue;
      c.x[kept] = c.x[i];
      c.id[kept] = c.id[i];
      c.weight[kept++] = c.weight[i];
    }
    if (kept == 0) break;
    n = kept;
  }
  std::vector<std::uint32_t> order(n);
  for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint32_t>(i);
  // Stable over ids, which ascend: equal logits stay ordered by id. All-equal input needs no sort.
  if (n > 0 && n <= kSortBelow) {
    std::stable_sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) { return c.x[a] > c.x[b]; });
  }
  Prefix prefix;
  double weight = before;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t at = order[i];
    prefix.cut.ties = i > 0 && c.x[at] == prefix.cut.above ? prefix.cut.ties + 1 : 1;
    prefix.cut.above = c.x[at];
    prefix.cut.last_tie = c.id[at];
    prefix.before = weight;
    weight += c.weight[at];
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

double exact_sum(const RowView& row, double temperature, const SamplingKernels& kernels) {
  double sum = 0, e[kSamplingBlock];
  for (std::size_t b = 0; b < row.blocks.size(); ++b) {
    if ((static_cast<double>(row.block_max[b]) - row.max) / temperature < -60.0) continue;
    kernels.scaled_exps(row.blocks[b], kSamplingBlock, row.max, temperature, e);
    double block = 0;
    for (double value : e) block += value;
    sum += block;
  }
  return sum;
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

}  // namespace

Cut filter_row(const RowView& row, const Filters& filters, double scaled_sum, const SamplingKernels& kernels) {
  static thread_local Candidates candidates, work;
  Cut cut;
  const bool by_k = filters.top_k > 0 && filters.top_k < row.vocabulary;
  const bool by_p = filters.top_p < 1.0f;
  if (by_k) {
    gather(row, least_of_top_k(row, filters.top_k), kernels, candidates);
    std::fill(candidates.weight.begin(), candidates.weight.end(), 1.0);
    work = candidates;
    cut = select_prefix(work, filters.top_k).cut;
    keep_only(candidates, cut);
  }
  if (by_p) {
    const double top_p = filters.top_p;
    if (!by_k) {
      // Ids below this value hold less than 1 - top_p of the mass together, so all of them are outside the prefix.
      const double least = row.max + filters.temperature * std::log((1.0 - top_p) * 0.999 * scaled_sum /
                                                                    static_cast<double>(row.vocabulary));
      gather(row, static_cast<float>(std::clamp(std::nextafter(static_cast<float>(least), -FLT_MAX), -FLT_MAX, row.max)),
             kernels, candidates);
    }
    kernels.scaled_exps(candidates.x.data(), static_cast<int>(candidates.x.size()), row.max, filters.temperature,
                        candidates.weight.data());
    double sum = scaled_sum;
    if (by_k) {
      sum = 0;
      for (double weight : candidates.weight) sum += weight;
    }
    work = candidates;
    Prefix prefix = select_prefix(work, top_p * sum);
    // The single precision sum decides unless the boundary lies within its error.
    constexpr double kError = 4e-6;
    if (!by_k && !(prefix.before < top_p * sum * (1 - kError) && prefix.through >= top_p * sum * (1 + kError))) {
      work = candidates;
      prefix = select_prefix(work, top_p * exact_sum(row, filters.temperature, kernels));
    }
    cut = prefix.cut;
  }
  if (filters.min_p > 0.0f) {
    const float above = below_min_p(row.max, filters.temperature, filters.min_p);
    if (above >= cut.above) cut = Cut{above, -1, 0};
  }
  return cut;
}

}  // namespace mstar
