// A decode step planned while the one before it runs, so that a device never waits for the host. What such a plan
// assumes, that no row stops, may turn out wrong: then it computed a token too many for the rows that did.
#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "rollout/scheduler.h"

namespace mstar {

bool Scheduler::plan_ahead() {
  if (!outstanding_) throw std::logic_error("plan_ahead: no plan is outstanding");
  if (ahead_ || plan_.kind != PlanKind::decode || running_.empty() || steps_to_length_ <= 1) return false;
  if (!aborts_.empty() || !preempted_.empty() || !growing_.empty() || admits()) return false;

  before_ = extent();
  ahead_grown_.clear();
  pending_ = 1;
  const bool was_valid = layout_valid_;
  ahead_ = was_valid ? advance() : rewrite_ahead();
  pending_ = 0;
  if (!ahead_) return false;
  std::fill_n(plan_.token_ids.begin(), plan_.num_rows, -1);
  if (thinned_)
    std::copy(alive_.begin(), alive_.end(), plan_.token_rows.begin());
  else
    std::iota(plan_.token_rows.begin(), plan_.token_rows.begin() + plan_.num_rows, 0);
  return true;
}

// Rows have ended since the outstanding step was planned: its plan cannot be advanced in place.
bool Scheduler::rewrite_ahead() {
  write_log();
  std::int32_t need = 0;
  for (const Row* row : running_)
    need += (row->group->tail_tokens + row->drawn()) / options_.block_size == tree_.num_blocks(row->leaf);
  if (need > pool_.free_count()) return false;
  write_decode();
  return true;
}

Scheduler::Extent Scheduler::extent() const {
  return {plan_.num_rows, plan_.num_tokens, plan_.num_draws, plan_.num_copies, evicted_.size()};
}

// Of what a step drew, that of the rows which had not ended meanwhile; how many they are.
std::int64_t Scheduler::keep_alive(const std::int32_t*& tokens, const float*& records, std::int64_t count) {
  if (!std::exchange(thinned_, false)) return count;
  const std::size_t width = options_.record_width;
  alive_tokens_.resize(alive_.size());
  alive_records_.resize(alive_.size() * width);
  for (std::size_t i = 0; i < alive_.size(); ++i) {
    alive_tokens_[i] = tokens[alive_[i]];
    std::copy_n(records + alive_[i] * width, width, alive_records_.data() + i * width);
  }
  tokens = alive_tokens_.data();
  records = alive_records_.data();
  return static_cast<std::int64_t>(alive_.size());
}

// Some running rows are done and about to leave: the step ahead, which has them, is thinned.
void Scheduler::drop_from_ahead() {
  thinned_ = true;
  alive_.clear();
  steps_to_length_ = std::numeric_limits<std::int32_t>::max();
  for (std::size_t r = 0; r < running_.size(); ++r) {
    const Row& row = *running_[r];
    if (row.state == RowState::done) continue;
    alive_.push_back(static_cast<std::int32_t>(r));
    steps_to_length_ = std::min(steps_to_length_, row.group->request.max_tokens - row.drawn());
  }
}

// The older step has ended; what would have to be undone from now on is the step ahead.
void Scheduler::settle_ahead() {
  grown_.swap(ahead_grown_);
  copied_.clear();
  evicted_.clear();
}

void Scheduler::undo_ahead() {
  ahead_ = layout_valid_ = false;
  for (const NodeId leaf : ahead_grown_) tree_.pop(leaf);
  plan_.num_rows = before_.rows;
  plan_.num_tokens = before_.tokens;
  plan_.num_draws = before_.draws;
  plan_.num_copies = before_.copies;
}

}  // namespace mstar
