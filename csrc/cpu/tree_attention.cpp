#include "cpu/tree_attention.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.h"

namespace mstar {
namespace {

using namespace attention;

const Kernel& kernel_for(Isa isa) {
  if (isa > active_isa()) {
    throw std::invalid_argument(std::string("tree_attention: isa ") + isa_name(isa) + " cannot run here; the widest is " +
                                isa_name(active_isa()));
  }
  switch (isa) {
#if MSTAR_HAS_AVX512
    case Isa::avx512:
      return avx512::tree_attention_kernel;
#endif
#if MSTAR_HAS_AVX2
    case Isa::avx2:
      return avx2::tree_attention_kernel;
#endif
    default:
      return portable::tree_attention_kernel;
  }
}

// Grows and never shrinks: a step's buffers are those of the step before.
float* aligned_buffer(std::vector<float>& storage, std::int64_t floats) {
  if (static_cast<std::int64_t>(storage.size()) < floats + 16) storage.resize(floats + 16);
  const auto address = reinterpret_cast<std::uintptr_t>(storage.data());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

struct Schedule {
  std::vector<Item> items;
  std::vector<std::int64_t> row_offsets;  // [rows + 1] into row_partials
  std::vector<std::int64_t> row_partials;
  std::int64_t partials = 0;
};

int chunks_of(const TreeAttention& a, int node) { return (a.length[node] + kChunk - 1) / kChunk; }

Schedule schedule(const TreeAttention& a) {
  Schedule s;
  // A row's partials are merged in the order of its sequence, however the plan lists the nodes.
  std::vector<int> order(a.nodes);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return a.start[x] < a.start[y]; });

  s.row_offsets.assign(a.rows + 1, 0);
  std::int64_t tiles = 0;
  const int group = a.heads / a.kv_heads;
  for (int node : order) {
    for (int row = a.row_begin[node]; row < a.row_end[node]; ++row) s.row_offsets[row + 1] += chunks_of(a, node);
    const std::int64_t lanes = static_cast<std::int64_t>(a.row_end[node] - a.row_begin[node]) * group;
    tiles += (lanes + kLanes - 1) / kLanes * chunks_of(a, node) * a.kv_heads;
  }
  std::partial_sum(s.row_offsets.begin(), s.row_offsets.end(), s.row_offsets.begin());
  s.row_partials.resize(s.row_offsets.back());
  std::vector<std::int64_t> next(s.row_offsets.begin(), s.row_offsets.end() - 1);

  // Tiles of one item share the reading of K and V; with few tiles for the threads, spreading them matters more.
  const int threads = num_threads();
  const int lanes_per_item = kLanes * (threads > 1 && tiles < 16 * threads ? 1 : kTilesPerItem);
  for (int node : order) {
    const int rows = a.row_end[node] - a.row_begin[node];
    for (int chunk = 0; chunk < chunks_of(a, node); ++chunk) {
      for (int row = a.row_begin[node]; row < a.row_end[node]; ++row) {
        s.row_partials[next[row]++] = s.partials + static_cast<std::int64_t>(row - a.row_begin[node]) * a.heads;
      }
      for (int kv_head = 0; kv_head < a.kv_heads; ++kv_head) {
        for (int lane = 0; lane < rows * group; lane += lanes_per_item) {
          const int lane_end = std::min(lane + lanes_per_item, rows * group);
          s.items.push_back({node, chunk, kv_head, lane, lane_end, s.partials});
        }
      }
      s.partials += static_cast<std::int64_t>(rows) * a.heads;
    }
  }
  if (threads > 1) {  // the largest first: the small ones fill the gaps at the end
    auto cost = [&](const Item& i) {
      return static_cast<std::int64_t>(i.lane_end - i.lane_begin) *
             std::min(kChunk, a.length[i.node] - i.chunk * kChunk);
    };
    std::stable_sort(s.items.begin(), s.items.end(), [&](auto& x, auto& y) { return cost(x) > cost(y); });
  }
  return s;
}

}  // namespace

std::int64_t attention::scratch_size(int head_dim) {
  const std::int64_t padded = (head_dim + 15) / 16 * 16;
  return padded * (2 * kTilesPerItem * kLanes + 3 * kKeys + 1) + kKeys * kLanes;
}

void tree_attention(const TreeAttention& a, Isa isa) {
  const Kernel& kernel = kernel_for(isa);
  const Schedule s = schedule(a);

  static thread_local std::vector<float> storage;
  const std::int64_t padded = (s.partials + 15) / 16 * 16;
  Partials partials;
  partials.max = aligned_buffer(storage, 2 * padded + s.partials * a.head_dim);
  partials.sum = partials.max + padded;
  partials.acc = partials.sum + padded;

  parallel_for(static_cast<std::int64_t>(s.items.size()), [&](std::int64_t i) {
    static thread_local std::vector<float> scratch;
    kernel.attend(a, s.items[i], partials, aligned_buffer(scratch, scratch_size(a.head_dim)));
  });

  constexpr int kRowsPerTask = 8;
  parallel_for((a.rows + kRowsPerTask - 1) / kRowsPerTask, [&](std::int64_t task) {
    const int end = std::min<int>(a.rows, (task + 1) * kRowsPerTask);
    for (int row = task * kRowsPerTask; row < end; ++row) {
      const std::int64_t begin = s.row_offsets[row];
      kernel.merge(a, row, {s.row_partials.data() + begin, static_cast<int>(s.row_offsets[row + 1] - begin)}, partials);
    }
  });
}

}  // namespace mstar
