// A prompt and the rows sampled from it, the unit of admission. A held group's rows are stems: given tokens which stay
// in the cache and do not run; a forked group's rows continue a stem.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>
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

// Everything the caller says about a held group.
struct HoldRequest {
  std::int32_t prompt_length = 0;
  std::vector<std::int32_t> tokens;                // of all stems, one after the other
  std::vector<std::int32_t> lengths;               // by stem
  std::vector<std::vector<std::int32_t>> offsets;  // by stem, ascending: how many of its tokens may precede a fork
  std::int32_t fork_rows = 0;                      // alive at one time, at most
  std::int32_t max_tokens = 0;                     // of a forked row, at most
};

// What a held group is beyond a group.
struct Hold {
  std::vector<std::vector<std::int32_t>> offsets;
  std::int32_t fork_rows = 0;
  std::int32_t worst_nodes = 0;  // of the tree
  std::int32_t inner_nodes = 0;  // of the tree, below the prompt
  std::int32_t computed = 0;     // the stems before this one are resident
  bool ready = false;            // all are, and can be forked
  std::int32_t alive_rows = 0;
  std::vector<Group*> forks;  // that have not ended, in order of age
};

struct Group {
  std::int32_t handle = 0;
  GroupRequest request;  // of a fork, the prompt reaches to where the stem was left
  std::vector<Row> rows;
  std::int32_t full_blocks = 0;   // of the prompt, shared by all rows as a node
  std::int32_t tail_tokens = 0;   // of the prompt, in its partial block; of a fork's, beyond the leaf's start
  std::int32_t shared_worst = 0;  // blocks the group may need once ...
  std::int32_t row_worst = 0;     // ... and for each row
  std::int32_t open_leaves = 0;   // the prompt is resident while there is one
  std::int32_t done_rows = 0;
  bool admitted = false;

  std::unique_ptr<Hold> hold;    // of a held group
  Group* root = nullptr;         // of a forked group that has not ended: the held group
  std::int32_t stem = 0;         // of a forked group: which of the root's,
  std::int32_t offset = 0;       // after how many of its tokens, and
  std::int32_t last_token = -1;  // the last of them, which is not in the cache: the rows feed it first

  std::int32_t num_rows() const { return static_cast<std::int32_t>(rows.size()); }
  std::int32_t prompt_blocks() const { return full_blocks + (tail_tokens > 0); }
  std::int64_t worst_blocks() const { return shared_worst + std::int64_t{num_rows()} * row_worst; }
  // Places among the rows that run together, from admission on.
  std::int32_t row_places() const { return hold ? hold->fork_rows : num_rows(); }
};

// The order of the running rows: age, and below a held group the order of the tree, in which the rows below each node
// are neighbours.
inline bool runs_before(const Row* a, const Row* b) {
  const auto place = [](const Row* row) {
    const Group& group = *row->group;
    return std::make_tuple(group.root ? group.root->handle : group.handle, group.stem, group.offset, row->id);
  };
  return place(a) < place(b);
}

}  // namespace mstar
