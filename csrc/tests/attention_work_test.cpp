#include "rollout/attention_work.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

using mstar::AttentionNodes;
using mstar::AttentionTiling;
using mstar::AttentionWork;

namespace {

constexpr std::int32_t kUntouched = -77;
constexpr AttentionTiling kTiling{4, 2, 18, 1056, 132, 128};

struct Nodes {
  std::vector<std::int32_t> begin, end, table, length, start;
  std::int32_t tables = 1000, max_length = 1 << 20;

  void add(std::int32_t row_begin, std::int32_t row_end, std::int32_t tokens, std::int32_t first = 0) {
    begin.push_back(row_begin);
    end.push_back(row_end);
    table.push_back(static_cast<std::int32_t>(length.size()) * 3 % tables);
    length.push_back(tokens);
    start.push_back(first);
  }
  AttentionNodes view() const {
    return {static_cast<std::int32_t>(length.size()), begin.data(), end.data(), table.data(), length.data(),
            start.data(), tables, max_length};
  }
};

struct Planned {
  Planned(std::int32_t rows, std::int32_t max_items, std::int32_t max_slots)
      : counts(3, kUntouched), items(max_items * AttentionWork::kFields + 1, kUntouched), row_begin(rows + 2, kUntouched),
        slots(max_slots + 1, kUntouched), rows(rows), max_items(max_items), max_slots(max_slots) {}

  void plan(const Nodes& nodes, const AttentionTiling& tiling) {
    mstar::plan_attention_work(nodes.view(), tiling, {counts.data(), items.data(), row_begin.data(), slots.data(),
                                                      max_items, rows, max_slots});
  }
  const std::int32_t* item(std::int32_t i) const { return items.data() + i * AttentionWork::kFields; }
  std::int32_t num_items() const { return counts[0] + counts[1]; }

  std::vector<std::int32_t> counts, items, row_begin, slots;
  std::int32_t rows, max_items, max_slots;
};

// Groups of 16 rows below a prompt of 1,488 tokens, each row with 512 of its own.
Nodes groups(std::int32_t count) {
  Nodes nodes;
  for (std::int32_t group = 0; group < count; ++group) nodes.add(16 * group, 16 * group + 16, 1488);
  for (std::int32_t row = 0; row < 16 * count; ++row) nodes.add(row, row + 1, 512, 1488);
  return nodes;
}

// Every key of a node is in exactly one item of each of its rows, whose slots are all different.
void covers(const Nodes& nodes, const AttentionTiling& tiling, const Planned& found) {
  std::vector<std::vector<std::int32_t>> expected(found.rows), slot_of(found.rows);
  std::vector<std::int64_t> keys(nodes.length.size() * found.rows, 0);
  std::vector<bool> used(found.counts[2], false);
  std::int32_t before = std::numeric_limits<std::int32_t>::max();
  for (std::int32_t i = 0; i < found.num_items(); ++i) {
    const std::int32_t* item = found.item(i);
    const std::int32_t m = item[0], rows = item[2] - item[1], length = item[4] - item[3];
    const bool narrow = nodes.end[m] - nodes.begin[m] <= tiling.narrow_rows;
    CHECK(narrow == (i >= found.counts[0]));
    CHECK(0 < rows && rows <= (narrow ? tiling.narrow_rows : tiling.wide_rows));
    CHECK(nodes.begin[m] <= item[1] && item[2] <= nodes.end[m]);
    CHECK(0 < length && item[3] % tiling.quantum == 0 && item[4] <= nodes.length[m]);
    CHECK(item[4] == nodes.length[m] || item[4] % tiling.quantum == 0);
    CHECK(item[6] == nodes.table[m] && item[7] == nodes.start[m]);
    if (i == found.counts[0]) before = std::numeric_limits<std::int32_t>::max();
    const std::int32_t quanta = (length + tiling.quantum - 1) / tiling.quantum;
    CHECK(quanta <= before);
    before = quanta;
    for (std::int32_t row = item[1]; row < item[2]; ++row) {
      keys[m * found.rows + row] += length;
      const std::int32_t slot = item[5] + row - item[1];
      CHECK(0 <= slot && slot < found.counts[2] && !used[slot]);
      used[slot] = true;
      slot_of[row].push_back(slot);
    }
  }
  CHECK(std::all_of(used.begin(), used.end(), [](bool is_used) { return is_used; }));
  for (std::size_t m = 0; m < nodes.length.size(); ++m)
    for (std::int32_t row = 0; row < found.rows; ++row)
      CHECK(keys[m * found.rows + row] == (nodes.begin[m] <= row && row < nodes.end[m] ? nodes.length[m] : 0));
  CHECK(found.row_begin[0] == 0 && found.row_begin[found.rows] == found.counts[2]);
  for (std::int32_t row = 0; row < found.rows; ++row) {
    std::vector<std::int32_t> listed(found.slots.begin() + found.row_begin[row],
                                     found.slots.begin() + found.row_begin[row + 1]);
    std::sort(listed.begin(), listed.end());
    std::sort(slot_of[row].begin(), slot_of[row].end());
    CHECK(listed == slot_of[row]);
  }
  CHECK(found.items[found.num_items() * AttentionWork::kFields] == kUntouched);
  CHECK(found.slots[found.counts[2]] == kUntouched && found.row_begin[found.rows + 1] == kUntouched);
}

void any_nodes_are_covered() {
  std::mt19937 random(1);
  const auto below = [&](std::int32_t n) { return static_cast<std::int32_t>(random() % n); };
  for (int i = 0; i < 3000; ++i) {
    const std::int32_t rows = 1 + below(40);
    Nodes nodes;
    for (std::int32_t m = below(30); m > 0; --m) {
      const std::int32_t begin = below(rows + 1);
      nodes.add(begin, begin + below(rows - begin + 1), below(2) * below(300), below(50));
    }
    const AttentionTiling tiling{1 + below(4), 1 + below(4), 4 + below(9), 1 + below(50), 1 + below(20), 1 + below(32)};
    Planned found(rows, 20000, 100000);
    found.plan(nodes, tiling);
    covers(nodes, tiling, found);
  }
}

void many_groups_are_not_cut_and_few_fill_the_chip() {
  Planned many(256, 2000, 4000);
  many.plan(groups(16), kTiling);
  covers(groups(16), kTiling, many);
  CHECK(many.counts[0] == 16 && many.counts[1] == 256 && many.counts[2] == 512);

  Planned one(16, 2000, 4000);
  one.plan(groups(1), kTiling);
  covers(groups(1), kTiling, one);
  CHECK(one.num_items() * kTiling.kv_heads >= 132);

  Planned alone(1, 2000, 4000);
  Nodes nodes;
  nodes.add(0, 1, 16384);
  alone.plan(nodes, kTiling);
  CHECK(alone.counts[1] == 16384 / 128);
}

void only_as_much_is_written_as_fits() {
  const Nodes nodes = groups(2);
  for (const auto& [items, slots] : {std::pair{33, 4000}, std::pair{2000, 63}}) {
    Planned found(32, items, slots);
    bool caught = false;
    try {
      found.plan(nodes, {4, 2, 18, 1, 1, 128});  // 2 wide items, 32 narrow ones, 64 slots
    } catch (const std::invalid_argument& error) {
      caught = std::string(error.what()).find(items == 33 ? "items=34" : "slots=64") != std::string::npos;
    }
    CHECK(caught && found.counts[0] == kUntouched && found.items[0] == kUntouched && found.slots[0] == kUntouched);
  }
  Planned exact(32, 34, 64);
  exact.plan(nodes, {4, 2, 18, 1, 1, 128});
}

void nodes_out_of_range_are_refused() {
  for (int change = 0; change < 7; ++change) {
    Nodes nodes = groups(1);
    if (change == 0) nodes.begin[3] = -1;
    if (change == 1) nodes.begin[3] = nodes.end[3] + 1;
    if (change == 2) nodes.end[3] = 17;
    if (change == 3) nodes.table[3] = nodes.tables;
    if (change == 4) nodes.length[3] = nodes.max_length + 1;
    if (change == 5) nodes.length[3] = -1;
    if (change == 6) nodes.start[3] = -1;
    Planned found(16, 2000, 4000);
    CHECK_THROWS(found.plan(nodes, kTiling), std::invalid_argument);
    CHECK(found.counts[0] == kUntouched && found.row_begin[0] == kUntouched);
  }
}

// Prints rather than checks: a test must not depend on the machine's speed.
void time_of_a_full_step() {
  const Nodes nodes = groups(16);
  Planned found(256, 2000, 4000);
  double best = 1e9;
  for (int i = 0; i < 200; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    found.plan(nodes, kTiling);
    best = std::min(best, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
  }
  std::printf("256 rows planned in %.1f us\n", best);
}

}  // namespace

int main() {
  any_nodes_are_covered();
  many_groups_are_not_cut_and_few_fill_the_chip();
  only_as_much_is_written_as_fits();
  nodes_out_of_range_are_refused();
  time_of_a_full_step();
}
