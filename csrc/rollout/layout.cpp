// The arrays of a plan: tokens, rows and nodes as flat runs.
#include <algorithm>

#include "rollout/scheduler.h"

namespace mstar {

// The prompt's tokens, once for all rows. Their ids are the caller's.
void Scheduler::write_prompt(const Group& group) {
  const std::int32_t size = options_.block_size;
  const auto holder = std::find_if(group.rows.begin(), group.rows.end(),
                                   [](const Row& row) { return row.leaf != kNoNode; });
  const NodeId prompt = tree_.parent(holder->leaf);
  const std::int32_t length = group.request.prompt_length;
  for (std::int32_t begin = 0, j = 0; begin < length; begin += size, ++j) {
    const std::int32_t block = j < group.full_blocks ? tree_.block(prompt, j) : tree_.block(holder->leaf, 0);
    const std::int32_t in_block = std::min(size, length - begin);
    for (std::int32_t i = 0; i < in_block; ++i) {
      const std::int32_t t = plan_.num_tokens++;
      plan_.token_ids[t] = -1;
      plan_.positions[t] = begin + i;
      plan_.slots[t] = block * size + i;
    }
  }
  plan_.group_ids[plan_.num_groups++] = group.handle;
  plan_.token_begin[plan_.num_groups] = plan_.num_tokens;
}

// Blocks of a row's own that its tokens but the last fill.
std::int32_t Scheduler::leaf_blocks(const Row& row) const {
  return (row.group->tail_tokens + row.drawn() - 1 + options_.block_size - 1) / options_.block_size;
}

// A row whose tokens but the last are computed again, or for the first time.
void Scheduler::write_run(const Row& row) {
  const Group& group = *row.group;
  const std::int32_t size = options_.block_size;
  for (std::int32_t i = 0; i + 1 < row.drawn(); ++i) {
    const std::int32_t t = plan_.num_tokens++;
    const std::int32_t offset = group.tail_tokens + i;
    plan_.token_ids[t] = row.tokens[i];
    plan_.positions[t] = group.request.prompt_length + i;
    plan_.slots[t] = tree_.block(row.leaf, offset / size) * size + offset % size;
  }
  write_row(plan_.num_rows, row);
  plan_.logit_rows[plan_.num_rows++] = -1;
  plan_.group_ids[plan_.num_groups++] = group.handle;
  plan_.token_begin[plan_.num_groups] = plan_.num_tokens;
}

void Scheduler::write_row(std::int32_t r, const Row& row) {
  const GroupRequest& request = row.group->request;
  plan_.row_ids[r] = row.id;
  plan_.row_groups[r] = row.group->handle;
  plan_.seed[r] = request.seed;
  plan_.problem[r] = request.problem;
  plan_.sample[r] = request.samples[row.index];
  plan_.position[r] = row.group->offset + row.drawn() + pending_;
  plan_.temperature[r] = request.temperature[row.index];
  plan_.top_k[r] = request.top_k[row.index];
  plan_.top_p[r] = request.top_p[row.index];
  plan_.min_p[r] = request.min_p[row.index];
}

// The nodes of the plan's rows, whose last `unfed` tokens are not in the cache.
void Scheduler::write_nodes(Row* const* rows, std::int32_t unfed) {
  const std::int32_t size = options_.block_size;
  std::int32_t count = 0;
  const auto write = [&](NodeId node, std::int32_t begin, std::int32_t length) {
    plan_.node_row_begin[count] = begin;
    plan_.node_row_end[count] = begin + 1;
    plan_.node_table[count] = node;
    plan_.node_length[count] = length;
    plan_.node_start[count] = tree_.start(node);
    ++count;
  };
  for (std::int32_t r = 0; r < plan_.num_rows; ++r) {
    for (NodeId node = tree_.parent(rows[r]->leaf); node != kNoNode; node = tree_.parent(node)) {
      if (node_index_[node] >= 0) {
        plan_.node_row_end[node_index_[node]] = r + 1;
      } else {
        node_index_[node] = count;
        write(node, r, tree_.num_blocks(node) * size);
      }
    }
  }
  for (std::int32_t m = 0; m < count; ++m) node_index_[plan_.node_table[m]] = -1;
  for (std::int32_t r = 0; r < plan_.num_rows; ++r) {
    const Row& row = *rows[r];
    write(row.leaf, r, row.group->request.prompt_length + row.drawn() + pending_ - unfed - tree_.start(row.leaf));
  }
  plan_.num_nodes = count;
}

}  // namespace mstar
