#include "rollout/attention_work.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "rollout/refusal.h"

namespace mstar {
namespace {

constexpr int kKinds = 2;  // wide, narrow

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

void check(const AttentionNodes& nodes, std::int32_t rows) {
  for (std::int32_t m = 0; m < nodes.count; ++m) {
    const auto name = [m](const char* array) { return std::string(array) + "[" + std::to_string(m) + "]"; };
    if (nodes.row_begin[m] < 0 || nodes.row_begin[m] > nodes.row_end[m])
      refuse(name("node_row_begin"), nodes.row_begin[m], "0 to " + std::to_string(nodes.row_end[m]));
    if (nodes.row_end[m] > rows) refuse(name("node_row_end"), nodes.row_end[m], "0 to " + std::to_string(rows));
    if (nodes.table[m] < 0 || nodes.table[m] >= nodes.tables)
      refuse(name("node_table"), nodes.table[m], "0 to " + std::to_string(nodes.tables - 1));
    if (nodes.length[m] < 0 || nodes.length[m] > nodes.max_length)
      refuse(name("node_length"), nodes.length[m], "0 to " + std::to_string(nodes.max_length));
    if (nodes.start[m] < 0) refuse(name("node_start"), nodes.start[m], "0 or more");
  }
}

// How one node is cut; no pieces when it has no rows or no keys.
struct Cut {
  std::int32_t kind = 0, tiles = 0, tile_rows = 0, pieces = 0, step = 0;
};

class Cuts {
 public:
  Cuts(const AttentionNodes& nodes, const AttentionTiling& tiling) : cuts_(nodes.count) {
    std::int64_t work = 0;
    for (std::int32_t m = 0; m < nodes.count; ++m) {
      const std::int32_t rows = nodes.row_end[m] - nodes.row_begin[m];
      if (rows == 0 || nodes.length[m] == 0) continue;
      Cut& cut = cuts_[m];
      cut.kind = rows <= tiling.narrow_rows;
      cut.tile_rows = cut.kind ? tiling.narrow_rows : tiling.wide_rows;
      cut.tiles = static_cast<std::int32_t>(divide_up(rows, cut.tile_rows));
      work += static_cast<std::int64_t>(cut.tiles) * nodes.length[m] * tiling.kv_heads;
    }
    const std::int64_t quantum = tiling.quantum;
    const std::int64_t limit[kKinds] = {std::max(quantum, divide_up(work, tiling.wide_programs)),
                                        std::max(quantum, divide_up(work, tiling.narrow_programs))};
    for (std::int32_t m = 0; m < nodes.count; ++m) {
      Cut& cut = cuts_[m];
      if (cut.tiles == 0) continue;
      const std::int64_t length = nodes.length[m], near = limit[cut.kind];
      const std::int64_t wanted = std::max<std::int64_t>(1, (2 * length + near) / (2 * near));  // to the nearest
      cut.step = static_cast<std::int32_t>(divide_up(length, wanted * quantum) * quantum);
      cut.pieces = static_cast<std::int32_t>(divide_up(length, cut.step));
      items_[cut.kind] += static_cast<std::int64_t>(cut.tiles) * cut.pieces;
      slots_ += static_cast<std::int64_t>(nodes.row_end[m] - nodes.row_begin[m]) * cut.pieces;
      longest_ = std::max(longest_, divide_up(std::min<std::int64_t>(length, cut.step), quantum));
    }
  }

  const Cut& operator[](std::int32_t m) const { return cuts_[m]; }
  std::int64_t items(int kind) const { return items_[kind]; }
  std::int64_t slots() const { return slots_; }
  std::int64_t longest() const { return longest_; }  // quanta of the longest piece

 private:
  std::vector<Cut> cuts_;
  std::int64_t items_[kKinds] = {0, 0}, slots_ = 0, longest_ = 0;
};

// The pieces of a node, in order: f(key begin, key end).
template <typename F>
void for_pieces(const Cut& cut, std::int32_t length, F&& f) {
  for (std::int32_t piece = 0; piece < cut.pieces; ++piece) {
    const std::int32_t begin = piece * cut.step;
    f(begin, piece + 1 < cut.pieces ? begin + cut.step : length);
  }
}

void write_items(const AttentionNodes& nodes, const Cuts& cuts, std::int32_t quantum, const AttentionWork& work) {
  // A counting sort: place[kind, quanta] is where the next item of that kind and length goes.
  const std::int64_t lengths = cuts.longest() + 1;
  std::vector<std::int32_t> place(kKinds * lengths, 0);
  const auto at = [&](const Cut& cut, std::int32_t keys) {
    return cut.kind * lengths + (lengths - 1 - divide_up(keys, quantum));
  };
  for (std::int32_t m = 0; m < nodes.count; ++m)
    for_pieces(cuts[m], nodes.length[m],
               [&](std::int32_t begin, std::int32_t end) { place[at(cuts[m], end - begin)] += cuts[m].tiles; });
  std::exclusive_scan(place.begin(), place.end(), place.begin(), 0);

  std::int32_t slot = 0;
  for (std::int32_t m = 0; m < nodes.count; ++m) {
    const Cut& cut = cuts[m];
    for_pieces(cut, nodes.length[m], [&](std::int32_t begin, std::int32_t end) {
      std::int32_t& next = place[at(cut, end - begin)];
      for (std::int32_t row = nodes.row_begin[m]; row < nodes.row_end[m]; row += cut.tile_rows) {
        const std::int32_t row_end = std::min(row + cut.tile_rows, nodes.row_end[m]);
        const std::int32_t item[AttentionWork::kFields] = {m,   row,  row_end,        begin,
                                                           end, slot, nodes.table[m], nodes.start[m]};
        std::copy(std::begin(item), std::end(item),
                  work.items + static_cast<std::int64_t>(next++) * AttentionWork::kFields);
        slot += row_end - row;
      }
    });
  }
}

void write_slots(const AttentionNodes& nodes, const Cuts& cuts, const AttentionWork& work) {
  std::fill(work.row_begin, work.row_begin + work.rows + 1, 0);
  for (std::int32_t m = 0; m < nodes.count; ++m)
    if (cuts[m].pieces > 0)
      for (std::int32_t row = nodes.row_begin[m]; row < nodes.row_end[m]; ++row)
        work.row_begin[row + 1] += cuts[m].pieces;
  std::partial_sum(work.row_begin, work.row_begin + work.rows + 1, work.row_begin);

  std::vector<std::int32_t> next(work.row_begin, work.row_begin + work.rows);
  std::int32_t slot = 0;  // counts as in write_items: pieces of a node in order, in each its rows in order
  for (std::int32_t m = 0; m < nodes.count; ++m)
    for (std::int32_t piece = 0; piece < cuts[m].pieces; ++piece)
      for (std::int32_t row = nodes.row_begin[m]; row < nodes.row_end[m]; ++row) work.slots[next[row]++] = slot++;
}

}  // namespace

void plan_attention_work(const AttentionNodes& nodes, const AttentionTiling& tiling, const AttentionWork& work) {
  check(nodes, work.rows);
  const Cuts cuts(nodes, tiling);
  const std::int64_t items = cuts.items(0) + cuts.items(1);
  if (items > work.max_items) refuse("attention work: items", items, "at most " + std::to_string(work.max_items));
  if (cuts.slots() > work.max_slots)
    refuse("attention work: slots", cuts.slots(), "at most " + std::to_string(work.max_slots));
  write_items(nodes, cuts, tiling.quantum, work);
  write_slots(nodes, cuts, work);
  work.counts[0] = static_cast<std::int32_t>(cuts.items(0));
  work.counts[1] = static_cast<std::int32_t>(cuts.items(1));
  work.counts[2] = static_cast<std::int32_t>(cuts.slots());
}

}  // namespace mstar
