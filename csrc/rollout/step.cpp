// Planning a step, and undoing the plan of a step that failed. Resumption comes first, then admission, then decode.
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "rollout/scheduler.h"

namespace mstar {

PlanKind Scheduler::next_plan() {
  if (outstanding_) throw std::logic_error("next_plan: the last plan was neither committed nor rolled back");
  admitted_.clear();
  resumed_.clear();
  computed_.clear();
  prompted_again_ = nullptr;
  grown_.clear();
  copied_.clear();
  evicted_.clear();
  if (plan_resume() || plan_stems() || plan_admission()) {
    write_log();
    layout_valid_ = false;
    outstanding_ = true;
  } else if (plan_decode()) {
    outstanding_ = true;
  } else {
    layout_valid_ = false;
    plan_.reset(PlanKind::idle);
  }
  return plan_.kind;
}

void Scheduler::rollback() {
  if (!outstanding_) throw std::logic_error("rollback: no plan is outstanding");
  if (ahead_) return undo_ahead();
  outstanding_ = thinned_ = false;
  layout_valid_ = false;
  for (auto it = admitted_.rbegin(); it != admitted_.rend(); ++it) {
    Group& group = **it;
    for (Row& row : group.rows) {
      close_leaf(row);
      row.state = RowState::waiting;
    }
    if (group.hold == nullptr) {
      running_.resize(running_.size() - group.rows.size());
    } else {
      growing_.pop_back();
      reserved_places_ -= group.hold->fork_rows;
      held_nodes_ -= group.hold->worst_nodes;
    }
    worst_running_ -= group.worst_blocks();
    group.admitted = false;
    waiting_.push_front(&group);
  }
  if (prompted_again_ != nullptr) close_leaf(*prompted_again_);
  for (auto it = resumed_.rbegin(); it != resumed_.rend(); ++it) {
    Row& row = *it->row;
    if (it->was_open)
      while (tree_.num_blocks(row.leaf) > (row.group->tail_tokens > 0)) tree_.pop(row.leaf);
    else
      close_leaf(row);
    row.state = RowState::preempted;
    running_.pop_back();
    preempted_.push_front(&row);
  }
  for (auto it = computed_.rbegin(); it != computed_.rend(); ++it) (*it)->group->hold->computed = (*it)->index;
  for (const NodeId leaf : grown_) tree_.pop(leaf);
  for (const PrivateCopy& copy : copied_) tree_.make_shared(copy.leaf, copy.index, copy.shared);
  for (auto it = evicted_.rbegin(); it != evicted_.rend(); ++it) {
    Row& row = *it->row;
    const NodeId leaf = it->nodes.front().id;
    for (auto node = it->nodes.rbegin(); node != it->nodes.rend(); ++node) tree_.reopen(*node);
    open_leaf(row, leaf);
    row.state = RowState::running;
    preempted_.pop_front();
    running_.push_back(&row);
  }
  apply_aborts();
}

// --- resumption ---------------------------------------------------------------------------------------------------

bool Scheduler::may_resume(const Row& row) const {
  if (running_.size() == static_cast<std::size_t>(options_.max_rows)) return false;
  if (running_.empty()) return true;  // all blocks but this row's own are free, and its longest form fits
  std::int32_t need = leaf_blocks(row) + 1;
  if (row.leaf != kNoNode)
    need -= tree_.num_blocks(row.leaf);
  else if (row.group->open_leaves == 0)
    need += row.group->full_blocks;
  return pool_.free_count() - need >= reserve_;
}

bool Scheduler::plan_resume() {
  if (preempted_.empty() || !may_resume(*preempted_.front())) return false;
  if (preempted_.front()->group->open_leaves == 0) return plan_prompt_again(*preempted_.front());
  plan_.reset(PlanKind::extend);
  while (!preempted_.empty()) {
    Row& row = *preempted_.front();
    if (row.group->open_leaves == 0 || !may_resume(row)) break;
    if (plan_.num_rows > 0 && plan_.num_tokens + row.drawn() - 1 > options_.max_prefill_tokens) break;
    resume(row);
  }
  write_nodes(running_.data() + running_.size() - plan_.num_rows, 1);
  return true;
}

// The row's prompt left with its last running sibling: it is prefilled once more, for this row to hold.
bool Scheduler::plan_prompt_again(Row& row) {
  Group& group = *row.group;
  plan_.reset(PlanKind::prefill);
  const NodeId prompt = group.full_blocks > 0 ? tree_.open(kNoNode, 0) : kNoNode;
  for (std::int32_t j = 0; j < group.full_blocks; ++j) tree_.append(prompt);
  open_leaf(row, tree_.open(prompt, group.full_blocks * options_.block_size));
  if (group.tail_tokens > 0) tree_.append(row.leaf);
  prompted_again_ = &row;
  write_prompt(group);
  return true;
}

void Scheduler::resume(Row& row) {
  const Group& group = *row.group;
  const bool was_open = row.leaf != kNoNode;
  if (!was_open) {
    // The first open leaf was there before this plan, so its blocks are no destination of a copy of this plan.
    const Row& sibling = *std::find_if(group.rows.begin(), group.rows.end(),
                                       [](const Row& other) { return other.leaf != kNoNode; });
    open_leaf(row, tree_.open(tree_.parent(sibling.leaf), tree_.start(sibling.leaf)));
    if (group.tail_tokens > 0) {
      plan_.copy_src[plan_.num_copies] = tree_.block(sibling.leaf, 0);
      plan_.copy_dst[plan_.num_copies++] = tree_.append(row.leaf);
    }
  }
  while (tree_.num_blocks(row.leaf) < leaf_blocks(row)) tree_.append(row.leaf);
  write_run(row);

  row.state = RowState::running;
  preempted_.pop_front();
  running_.push_back(&row);
  resumed_.push_back({&row, was_open});
}

// --- admission ----------------------------------------------------------------------------------------------------

bool Scheduler::may_admit(const Group& group) const {
  const std::int32_t n = group.row_places();
  if (static_cast<std::int32_t>(running_.size()) + reserved_places_ + n > options_.max_rows) return false;
  if (group.hold != nullptr && held_nodes_ + group.hold->worst_nodes > options_.max_held_nodes) return false;
  const std::int64_t prompt_tokens = std::int64_t{plan_.num_tokens} + group.request.prompt_length;
  if (plan_.num_groups > 0 && prompt_tokens > options_.max_prefill_tokens) return false;
  if (is_no_evict()) return worst_running_ + group.worst_blocks() <= options_.num_blocks;
  return running_.empty() || std::int64_t{pool_.free_count()} - group.prompt_blocks() - n >= reserve_;
}

// Whether the group at the front can be admitted now.
bool Scheduler::admits() {
  if (waiting_.empty() || !preempted_.empty()) return false;
  const std::int32_t places = options_.max_rows - static_cast<std::int32_t>(running_.size()) - reserved_places_;
  if (!running_.empty() && !filling_ && places < options_.admit_rows) return false;
  const std::int32_t groups_before = std::exchange(plan_.num_groups, 0);  // what may_admit counts
  const bool may = may_admit(*waiting_.front());
  plan_.num_groups = groups_before;  // the last plan stays as it is in case it is advanced
  return may;
}

bool Scheduler::plan_admission() {
  if (!admits()) return false;
  plan_.reset(PlanKind::prefill);
  while (!waiting_.empty() && may_admit(*waiting_.front())) admit(*waiting_.front());
  return true;
}

void Scheduler::admit(Group& group) {
  open_prompt(group);
  if (group.hold == nullptr) {
    for (Row& row : group.rows) {
      write_row(plan_.num_rows, row);
      plan_.logit_rows[plan_.num_rows++] = plan_.num_groups;
      row.state = RowState::running;
      running_.push_back(&row);
    }
  } else {
    growing_.push_back(&group);
    reserved_places_ += group.hold->fork_rows;
    held_nodes_ += group.hold->worst_nodes;
  }
  plan_.num_draws = plan_.num_rows;
  write_prompt(group);

  group.admitted = true;
  worst_running_ += group.worst_blocks();
  waiting_.pop_front();
  admitted_.push_back(&group);
}

// The prompt's blocks, and for each row a leaf that shares its tail.
void Scheduler::open_prompt(Group& group) {
  const NodeId prompt = group.full_blocks > 0 ? tree_.open(kNoNode, 0) : kNoNode;
  for (std::int32_t j = 0; j < group.full_blocks; ++j) tree_.append(prompt);
  for (Row& row : group.rows) {
    if (row.index == 0) {
      open_leaf(row, tree_.open(prompt, group.full_blocks * options_.block_size));
      if (group.tail_tokens > 0) tree_.append(row.leaf);
    } else {
      open_leaf(row, tree_.fork(group.rows[0].leaf));
    }
  }
}

// --- decode -------------------------------------------------------------------------------------------------------

bool Scheduler::plan_decode() {
  if (running_.empty()) return false;
  std::fill_n(plan_.token_rows.begin(), running_.size(), -1);
  if (layout_valid_ && advance()) return true;
  write_log();
  make_room();
  write_decode();
  return true;
}

void Scheduler::write_decode() {
  plan_.reset(PlanKind::decode);
  steps_to_length_ = std::numeric_limits<std::int32_t>::max();
  for (Row* row : running_) {
    const std::int32_t r = plan_.num_rows;
    write_row(r, *row);
    plan_.logit_rows[r] = r;
    place(*row);
    steps_to_length_ = std::min(steps_to_length_, row->group->request.max_tokens - row->drawn());
  }
  plan_.num_draws = plan_.num_rows;
  write_nodes(running_.data(), 0);
  layout_valid_ = true;
}

// The same rows as in the step before, each one token further. False when blocks lack: somebody must go.
bool Scheduler::advance() {
  const std::int32_t rows = plan_.num_rows;
  std::int32_t* room = room_.data();
  std::int32_t crossing = 0;
  for (std::int32_t r = 0; r < rows; ++r) {
    crossing_[crossing] = r;
    crossing += room[r] == 0;
  }
  if (crossing > pool_.free_count()) return false;
  // One array a loop: each is a plain vector increment.
  for (std::int32_t r = 0; r < rows; ++r) --room[r];
  std::int32_t* position = plan_.position.data();
  for (std::int32_t r = 0; r < rows; ++r) ++position[r];
  std::int32_t* positions = plan_.positions.data();
  for (std::int32_t r = 0; r < rows; ++r) ++positions[r];
  std::int32_t* slots = plan_.slots.data();
  for (std::int32_t r = 0; r < rows; ++r) ++slots[r];
  std::int32_t* leaf_length = plan_.node_length.data() + plan_.num_nodes - rows;
  for (std::int32_t r = 0; r < rows; ++r) ++leaf_length[r];
  for (std::int32_t i = 0; i < crossing; ++i) {
    const std::int32_t r = crossing_[i];
    const NodeId leaf = running_[r]->leaf;
    slots[r] = tree_.append(leaf) * options_.block_size;
    room[r] = options_.block_size - 1;
    (pending_ ? ahead_grown_ : grown_).push_back(leaf);
  }
  plan_.num_copies = 0;
  return true;
}

// Preempts the youngest rows until each of the rest has a block to write to. One row alone always has: submit
// refuses a row that does not fit by itself.
void Scheduler::make_room() {
  const auto next_block = [this](const Row& row) {
    return (row.group->tail_tokens + row.drawn() - 1) / options_.block_size;
  };
  const auto needs_block = [&](const Row& row) {
    const std::int32_t index = next_block(row);
    return index == tree_.num_blocks(row.leaf) || tree_.shared(row.leaf, index);
  };
  std::int32_t need = 0;
  const Row* last = nullptr;
  for (const Row* row : running_) {
    const std::int32_t index = next_block(*row);
    if (index == tree_.num_blocks(row->leaf)) {
      ++need;
    } else if (tree_.shared(row->leaf, index)) {
      // Of the rows that share a block, one keeps it.
      need += last != nullptr && last->group == row->group;
      last = row;
    }
  }
  while (need > pool_.free_count()) {
    need -= needs_block(*running_.back());
    preempt_youngest();
  }
}

void Scheduler::preempt_youngest() {
  Row& row = *running_.back();
  evicted_.push_back({&row, {}});
  close_leaf(row, &evicted_.back().nodes);
  row.state = RowState::preempted;
  running_.pop_back();
  preempted_.push_front(&row);
}

// Where the row's last token, which this step feeds, is stored.
void Scheduler::place(Row& row) {
  const Group& group = *row.group;
  const std::int32_t size = options_.block_size;
  const std::int32_t drawn = row.drawn() + pending_;
  const std::int32_t offset = group.tail_tokens + drawn - 1;
  const std::int32_t index = offset / size;
  if (index == tree_.num_blocks(row.leaf)) {
    tree_.append(row.leaf);
    (pending_ ? ahead_grown_ : grown_).push_back(row.leaf);
  } else if (tree_.shared(row.leaf, index)) {
    make_private(row.leaf, index);
  }
  const std::int32_t r = plan_.num_rows++;
  const std::int32_t t = plan_.num_tokens++;
  plan_.token_ids[t] = pending_ ? -1 : row.tokens.empty() ? group.last_token : row.tokens.back();
  plan_.positions[t] = group.request.prompt_length + drawn - 1;
  plan_.slots[t] = tree_.block(row.leaf, index) * size + offset % size;
  room_[r] = size - 1 - offset % size;
}

void Scheduler::make_private(NodeId leaf, std::int32_t index) {
  const BlockCopy copy = tree_.make_private(leaf, index);
  copied_.push_back({leaf, index, copy.src});
  plan_.copy_src[plan_.num_copies] = copy.src;
  plan_.copy_dst[plan_.num_copies++] = copy.dst;
}

}  // namespace mstar
