// One step's work as flat arrays, allocated once and written in place; what a model runner executes.
//
// Nodes: those above leaves first, then one leaf per row in row order, so the leaf of row r is node
// num_nodes - num_rows + r.
#pragma once

#include <cstdint>
#include <vector>

namespace mstar {

enum class PlanKind : std::int32_t { idle = 0, prefill = 1, extend = 2, decode = 3 };

struct Plan {
  Plan(std::int32_t max_rows, std::int32_t max_tokens, std::int32_t max_nodes)
      : row_ids(max_rows), row_groups(max_rows), logit_rows(max_rows), sample(max_rows), position(max_rows),
        top_k(max_rows), seed(max_rows), problem(max_rows), temperature(max_rows), top_p(max_rows), min_p(max_rows),
        token_ids(max_tokens), positions(max_tokens), slots(max_tokens), token_rows(max_rows, -1),
        node_row_begin(max_nodes), node_row_end(max_nodes), node_table(max_nodes), node_length(max_nodes),
        node_start(max_nodes),
        copy_src(max_rows), copy_dst(max_rows), group_ids(max_rows), token_begin(max_rows + 1) {}

  void reset(PlanKind new_kind) {
    kind = new_kind;
    num_rows = num_tokens = num_nodes = num_groups = num_copies = num_draws = 0;
    token_begin[0] = 0;
  }

  PlanKind kind = PlanKind::idle;
  std::int32_t num_rows = 0, num_tokens = 0, num_nodes = 0, num_groups = 0, num_copies = 0;
  std::int32_t num_draws = 0;  // tokens to commit: num_rows, or 0 when nothing is sampled

  std::vector<std::int32_t> row_ids, row_groups, logit_rows, sample, position, top_k;
  std::vector<std::uint64_t> seed, problem;
  std::vector<float> temperature, top_p, min_p;
  std::vector<std::int32_t> token_ids, positions, slots;
  // In a decode plan made ahead: the row of the step before whose draw each row feeds. Else -1: token_ids says it.
  std::vector<std::int32_t> token_rows;
  std::vector<std::int32_t> node_row_begin, node_row_end, node_table, node_length, node_start;
  std::vector<std::int32_t> copy_src, copy_dst;
  std::vector<std::int32_t> group_ids, token_begin;
};

}  // namespace mstar
