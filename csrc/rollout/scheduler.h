// The rollout scheduler: which rows run in the next step, and in which blocks. A pure state machine:
// submit -> (next_plan -> commit | rollback)* -> finished -> take.
//
// Order is age: waiting groups are younger than preempted rows, which are younger than running rows. Preemption takes
// the youngest running row, resumption the oldest preempted one, and nobody is admitted past a preempted row; so each
// of the three is a queue whose ends meet, and the running rows are sorted group-major without sorting.
//
// The policy no_evict admits a group only when the worst case of all running rows fits, so nothing is ever preempted.
// The policy watermark admits while a reserve stays free and preempts when a decode step lacks blocks. A preempted row
// keeps its tokens: its cache is recomputed (extend), what was drawn never changes.
//
// Held stems: hold -> ready -> (fork -> finished -> take)* -> release. A held group is admitted like others, but its
// rows are given: their tokens are computed once (extend) and stay. Forked groups continue a stem after one of the
// declared offsets; they run at once, in what the hold has reserved. Nothing is preempted where stems are held.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "rollout/block_pool.h"
#include "rollout/group.h"
#include "rollout/plan.h"
#include "rollout/prefix_tree.h"

namespace mstar {

enum class Policy { automatic, no_evict, watermark };

struct SchedulerOptions {
  std::int32_t num_blocks = 0;
  std::int32_t block_size = 0;
  std::int32_t max_rows = 0;
  std::int32_t max_prefill_tokens = 0;
  std::int32_t max_sequence_length = 0;
  std::vector<std::int32_t> stop_ids;
  Policy policy = Policy::automatic;
  double watermark = 0.05;
  std::int32_t record_width = 4;
  // Row places that must be free before anything is admitted while rows run: a prefill of several groups costs little
  // more than that of one. Once begun, admission goes on, prefill after prefill, until a group does not fit, so that
  // no places stay empty. 1 admits at the first chance.
  std::int32_t admit_rows = 1;
  // Nodes of the tree for held groups: each needs one, and one for each stem and for each offset.
  std::int32_t max_held_nodes = 0;
};

// Totals of committed steps, and the state of the moment.
struct SchedulerStats {
  std::int64_t prefill_tokens = 0, extend_tokens = 0, decode_tokens = 0, sampled_tokens = 0;
  std::int64_t preemptions = 0, copies = 0;
  std::int32_t free_blocks = 0, used_blocks = 0;
  std::int32_t waiting = 0;             // groups
  std::int32_t running = 0, preempted = 0;  // rows
  std::int32_t held = 0;                    // stems that can be forked
};

class Scheduler {
 public:
  // Throws std::invalid_argument naming the option.
  explicit Scheduler(SchedulerOptions options);

  // Queues a group; its handle. Throws std::invalid_argument when it is malformed or can never run.
  std::int32_t submit(GroupRequest request);

  // Queues a held group; its handle. Throws std::invalid_argument when it is malformed or can never be held.
  std::int32_t hold(HoldRequest request);
  // Held groups whose stems have all become resident since the last call.
  std::vector<std::int32_t> ready();
  // Starts a group below the first `offset` tokens of a stem; its handle. Its prompt_length is not read. Throws
  // std::invalid_argument when the hold is not ready or the group is beyond what it declared, std::logic_error while a
  // plan is outstanding.
  std::int32_t fork(std::int32_t handle, std::int32_t stem, std::int32_t offset, GroupRequest request);
  // Gives the stems back; the handle is forgotten. Throws std::invalid_argument while a forked row is alive,
  // std::logic_error while a plan is outstanding.
  void release(std::int32_t handle);

  // Plans a step. Throws std::logic_error while a plan is outstanding. An idle plan is not outstanding.
  PlanKind next_plan();
  const Plan& plan() const { return plan_; }
  Plan& plan() { return plan_; }
  PrefixTree& tree() { return tree_; }

  // With a decode plan outstanding: plans the decode step behind it, before it is known what it draws, as if no row
  // stopped. False, and nothing has changed, unless that is sure to be the next plan but for rows that stop: no row
  // reaches its max_tokens, nothing can be admitted or waits to resume, nothing was aborted, and blocks suffice. The
  // plan then feeds what the outstanding step draws (token_rows). Both are outstanding; commit() ends the older one,
  // and what the newer one draws for rows that had stopped is dropped. The caller has read the older plan's arrays.
  bool plan_ahead();

  // The step ran: `count` = its num_draws tokens and count x record_width records, in row order.
  void commit(const std::int32_t* tokens, std::int64_t count, const float* records, std::int64_t num_records);
  // The newest outstanding step failed: as if it had not been planned.
  void rollback();

  // Ends a group; its rows keep what they drew. During a step it takes effect when the step ends. A finished group
  // is left as it is; a held group's forks end with it, and it is released. Throws std::invalid_argument for an unknown
  // handle.
  void abort(std::int32_t handle);
  // Groups that ended since the last call.
  std::vector<std::int32_t> finished();
  // The rows of an ended group, which is forgotten. Throws std::invalid_argument when it has not ended.
  std::unique_ptr<Group> take(std::int32_t handle);
  // Whether anything waits or runs. Stems that are ready and not forked are no work; but a group may wait for their
  // release, and the plan is idle then.
  bool has_work() const {
    return !waiting_.empty() || !running_.empty() || !preempted_.empty() || !growing_.empty();
  }
  SchedulerStats stats() const;
  const SchedulerOptions& options() const { return options_; }

  // Throws std::logic_error when an invariant is broken. For tests.
  void audit() const;

 private:
  struct Eviction {
    Row* row;
    std::vector<ClosedNode> nodes;
  };
  struct Resumption {
    Row* row;
    bool was_open;  // its prompt was prefilled again in the step before
  };
  struct PrivateCopy {
    NodeId leaf;
    std::int32_t index;
    std::int32_t shared;
  };

  // What a commit needs to know of its plan.
  struct Extent {
    std::int32_t rows = 0, tokens = 0, draws = 0, copies = 0;
    std::size_t evictions = 0;
  };

  // scheduler.cpp: the life of groups
  void validate(const GroupRequest& request) const;
  Group& add(GroupRequest request);
  void log(const std::int32_t* tokens, const float* records, std::int32_t count);
  void write_log();
  void finish(Row& row, Reason reason);
  void finish_drawn(std::int32_t first_row);
  void end(Group& group);
  void abort_now(Group& group);
  void apply_aborts();
  void open_leaf(Row& row, NodeId leaf);
  void close_leaf(Row& row, std::vector<ClosedNode>* closed = nullptr);
  bool is_no_evict() const { return policy_ != Policy::watermark; }

  // hold.cpp: stems and forks
  void validate(const HoldRequest& request) const;
  Group& held(std::int32_t handle) const;
  bool plan_stems();
  void compute(Row& stem);
  void settle_holds();
  void split(Group& group);
  void release_now(Group& group);

  // step.cpp: planning
  bool plan_resume();
  bool plan_prompt_again(Row& row);
  bool may_resume(const Row& row) const;
  void resume(Row& row);
  bool plan_admission();
  bool may_admit(const Group& group) const;
  bool admits();
  void admit(Group& group);
  void open_prompt(Group& group);
  bool plan_decode();
  bool advance();
  void make_room();
  void preempt_youngest();
  void place(Row& row);
  void make_private(NodeId leaf, std::int32_t index);
  void write_decode();

  // ahead.cpp: a step planned before the one in front of it has ended
  Extent extent() const;
  bool rewrite_ahead();
  std::int64_t keep_alive(const std::int32_t*& tokens, const float*& records, std::int64_t count);
  void drop_from_ahead();
  void settle_ahead();
  void undo_ahead();

  // layout.cpp: the arrays of a plan
  std::int32_t leaf_blocks(const Row& row) const;
  void write_prompt(const Group& group);
  void write_run(const Row& row);
  void write_row(std::int32_t r, const Row& row);
  void write_nodes(Row* const* rows, std::int32_t unfed);

  SchedulerOptions options_;
  Policy policy_;
  std::int32_t reserve_;  // blocks the watermark keeps free
  BlockPool pool_;
  PrefixTree tree_;
  Plan plan_;
  SchedulerStats totals_;

  std::unordered_map<std::int32_t, std::unique_ptr<Group>> groups_;
  std::deque<Group*> waiting_;
  std::vector<Row*> running_;  // in a prefill or extend plan, the plan's rows are the last ones
  std::deque<Row*> preempted_;
  std::vector<std::int32_t> finished_;
  std::vector<std::int32_t> aborts_;  // asked for during the outstanding step
  std::int32_t next_handle_ = 0;
  std::int32_t next_row_id_ = 0;
  std::int64_t worst_running_ = 0;  // blocks all that is admitted may come to need

  std::deque<Group*> growing_;        // admitted, with stems that are not resident yet
  std::vector<std::int32_t> ready_;
  std::int32_t holds_ = 0;            // queued or admitted, and not released
  std::int32_t held_stems_ = 0;       // of the groups that are ready
  std::int32_t held_nodes_ = 0;       // that the admitted holds may come to need
  std::int32_t reserved_places_ = 0;  // for rows that may be forked and are not

  // The outstanding step, and how to undo it.
  bool outstanding_ = false;
  std::vector<Group*> admitted_;
  std::vector<Resumption> resumed_;
  std::vector<Row*> computed_;  // stems
  Row* prompted_again_ = nullptr;
  std::vector<NodeId> grown_;
  std::vector<PrivateCopy> copied_;
  std::vector<Eviction> evicted_;

  // The step planned ahead of the outstanding one; and, once that one has ended, which rows of the step are still alive.
  bool ahead_ = false;
  std::int32_t pending_ = 0;  // while the step ahead is planned: tokens that each row has drawn and that are not known
  Extent before_;             // of the older plan
  std::vector<NodeId> ahead_grown_;
  bool filling_ = false;             // the last step was a prefill: admission goes on
  bool thinned_ = false;             // rows of the outstanding plan have ended
  std::vector<std::int32_t> alive_;  // then: rows of the plan that have not, in the order of running_
  std::vector<std::int32_t> alive_tokens_;
  std::vector<float> alive_records_;

  // What the running rows drew in the last steps, step by step, for the rows running_[0 .. log_rows_). It reaches the
  // rows in runs of some steps, before anything reads them: a row's memory is far from the next row's.
  static constexpr std::int32_t kLogSteps = 32;
  static constexpr std::int32_t kReservedTokens = 1024;  // a row's memory grows only beyond
  std::int32_t log_rows_ = 0;
  std::int32_t log_steps_ = 0;
  std::vector<std::int32_t> log_tokens_;  // [kLogSteps, log_rows_]
  std::vector<float> log_records_;        // [kLogSteps, log_rows_, record_width]

  // The decode plan in place is advanced, not rewritten, while the running rows stay the same.
  bool layout_valid_ = false;
  std::int32_t steps_to_length_ = 0;      // until the first row reaches its max_tokens
  std::vector<std::int32_t> room_;        // by row of the plan: tokens that still fit its last block
  std::vector<std::int32_t> crossing_;    // rows of the plan that begin a new block
  std::vector<std::int32_t> node_index_;  // by node: its place in the plan, while nodes are written
};

}  // namespace mstar
