// A prompt and the rows sampled from it, the unit of admission.
#pragma once

#include <cstdint>
#include <vector>

#include "rollout/prefix_tree.h"

namespace mstar {

enum class Reason : std::int32_t { stop = 0, length = 1, abort = 2 };
enum class RowState : std::int8_t { waiting, running, preempted, done };

struct Group;

struct Row {
  Group* group = nullptr;
  std::int32_t id = 0;     // increasing over the scheduler's life, consecutive within a group
  std::int32_t index = 0;  // within the group
  NodeId leaf = kNoNode;   // open while the row runs; also for a preempted row whose prompt was just prefilled again
  RowState state = RowState::waiting;
  Reason reason = Reason::abort;
  std::vector<std::int32_t> tokens;  // drawn so far
  std::vector<float> records;

  std::int32_t drawn() const { return static_cast<std::int32_t>(tokens.size()); }
};

// Everything the caller says about a group. The arrays have one entry a row.
struct GroupRequest {
  std::int32_t prompt_length = 0;
  std::int32_t max_tokens = 0;
  std::uint64_t seed = 0;
  std::uint64_t problem = 0;
  std::vector<std::int32_t> samples;
  std::vector<float> temperature;
  std::vector<std::int32_t> top_k;
  std::vector<float> top_p;
  std::vector<float> min_p;
};

struct Group {
  std::int32_t handle = 0;
  GroupRequest request;
  std::vector<Row> rows;
  std::int32_t full_blocks = 0;   // of the prompt, shared by all rows as a node
  std::int32_t tail_tokens = 0;   // of the prompt, in its partial block
  std::int32_t shared_worst = 0;  // blocks the group may need once ...
  std::int32_t row_worst = 0;     // ... and for each row
  std::int32_t open_leaves = 0;   // the prompt is resident while there is one
  std::int32_t done_rows = 0;
  bool admitted = false;

  std::int32_t num_rows() const { return static_cast<std::int32_t>(rows.size()); }
  std::int32_t prompt_blocks() const { return full_blocks + (tail_tokens > 0); }
};

}  // namespace mstar
