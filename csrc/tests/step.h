// What the scheduler's tests do in every step: make a request, commit a token, check a plan.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "check.h"
#include "rollout/scheduler.h"

namespace mstar {

inline GroupRequest request(std::int32_t prompt_length, std::int32_t max_tokens, std::int32_t n) {
  GroupRequest group{prompt_length, max_tokens, 1, 2, {}, {}, {}, {}, {}};
  for (std::int32_t i = 0; i < n; ++i) group.samples.push_back(i);
  group.temperature.assign(n, 1.0f);
  group.top_k.assign(n, 0);
  group.top_p.assign(n, 1.0f);
  group.min_p.assign(n, 0.0f);
  return group;
}

inline void commit(Scheduler& scheduler, std::int32_t token, std::int32_t draws) {
  const std::vector<std::int32_t> tokens(draws, token);
  const std::vector<float> records(static_cast<std::size_t>(draws) * scheduler.options().record_width, 0.5f);
  scheduler.commit(tokens.data(), draws, records.data(), static_cast<std::int64_t>(records.size()));
}

inline void commit(Scheduler& scheduler, std::int32_t token) {
  commit(scheduler, token, scheduler.plan().num_draws);
}

// In a decode plan: rows below a node are contiguous, every slot belongs to the row's own leaf and to no other.
inline void check_decode_plan(Scheduler& scheduler) {
  const Plan& plan = scheduler.plan();
  const std::int32_t size = scheduler.options().block_size;
  const std::int32_t width = scheduler.tree().max_blocks_per_node();
  std::map<std::int32_t, std::int32_t> node_of_block;
  for (std::int32_t m = 0; m < plan.num_nodes; ++m) {
    CHECK(0 <= plan.node_row_begin[m] && plan.node_row_begin[m] < plan.node_row_end[m]);
    CHECK(plan.node_row_end[m] <= plan.num_rows && plan.node_start[m] % size == 0);
    for (std::int32_t j = 0; j * size < plan.node_length[m]; ++j) {
      const auto entry = static_cast<std::size_t>(plan.node_table[m]) * width + j;
      CHECK(node_of_block.emplace(scheduler.tree().block_table()[entry], m).second);
    }
  }
  for (std::int32_t r = 0; r < plan.num_rows; ++r) {
    const std::int32_t leaf = plan.num_nodes - plan.num_rows + r;
    CHECK(plan.node_row_begin[leaf] == r && plan.node_row_end[leaf] == r + 1);
    CHECK(node_of_block.at(plan.slots[r] / size) == leaf);
    CHECK(plan.node_start[leaf] + plan.node_length[leaf] == plan.positions[r] + 1);
    CHECK(plan.slots[r] % size == plan.positions[r] % size);
  }
}

}  // namespace mstar
