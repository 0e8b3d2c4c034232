// The life of groups: submitted, fed with what was drawn, ended, taken.
#include "rollout/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "rollout/refusal.h"

namespace mstar {
namespace {

std::int32_t ceil_div(std::int64_t a, std::int32_t b) { return static_cast<std::int32_t>((a + b - 1) / b); }

SchedulerOptions checked(SchedulerOptions options) {
  const auto positive = [](const char* key, std::int32_t value) {
    if (value < 1) refuse(key, value, "1 or more");
  };
  positive("num_blocks", options.num_blocks);
  positive("block_size", options.block_size);
  positive("max_rows", options.max_rows);
  positive("max_prefill_tokens", options.max_prefill_tokens);
  positive("max_sequence_length", options.max_sequence_length);
  positive("record_width", options.record_width);
  if (options.admit_rows < 1 || options.admit_rows > options.max_rows)
    refuse("admit_rows", options.admit_rows, "1 to max_rows=" + std::to_string(options.max_rows));
  if (!(options.watermark >= 0.0 && options.watermark < 1.0)) refuse("watermark", options.watermark, "0 to below 1");
  if (std::int64_t{options.num_blocks} * options.block_size > std::numeric_limits<std::int32_t>::max())
    refuse("num_blocks", options.num_blocks, "num_blocks * block_size below 2**31, the range of a slot");
  if (options.max_rows > (1 << 20)) refuse("max_rows", options.max_rows, "at most 2**20");
  if (options.max_held_nodes < 0 || options.max_held_nodes > (1 << 20))
    refuse("max_held_nodes", options.max_held_nodes, "0 to 2**20");
  return options;
}

}  // namespace

Scheduler::Scheduler(SchedulerOptions options)
    : options_(checked(std::move(options))),
      policy_(options_.policy),
      reserve_(static_cast<std::int32_t>(std::ceil(options_.watermark * options_.num_blocks))),
      pool_(options_.num_blocks),
      tree_(pool_, options_.block_size, 2 * options_.max_rows + options_.max_held_nodes,
            ceil_div(options_.max_sequence_length, options_.block_size)),
      plan_(options_.max_rows,
            std::max({options_.max_rows, options_.max_prefill_tokens, options_.max_sequence_length}),
            tree_.max_nodes()),
      log_tokens_(static_cast<std::size_t>(kLogSteps) * options_.max_rows),
      log_records_(log_tokens_.size() * options_.record_width),
      room_(options_.max_rows),
      crossing_(options_.max_rows),
      node_index_(tree_.max_nodes(), -1) {}

void Scheduler::validate(const GroupRequest& request) const {
  const auto n = static_cast<std::int32_t>(request.samples.size());
  if (n < 1) refuse("n", n, "1 or more rows (the length of samples)");
  if (n > options_.max_rows)
    refuse("n", n, "at most max_rows=" + std::to_string(options_.max_rows) + "; split the group or raise max_rows");
  const auto same_length = [n](const char* key, std::size_t length) {
    if (length != static_cast<std::size_t>(n))
      throw std::invalid_argument("length of " + std::string(key) + "=" + std::to_string(length) +
                                  "; allowed: that of samples, " + std::to_string(n));
  };
  same_length("temperature", request.temperature.size());
  same_length("top_k", request.top_k.size());
  same_length("top_p", request.top_p.size());
  same_length("min_p", request.min_p.size());
  if (request.prompt_length < 1) refuse("prompt_length", request.prompt_length, "1 or more tokens");
  if (request.max_tokens < 1) refuse("max_tokens", request.max_tokens, "1 or more tokens");
  const std::int64_t length = std::int64_t{request.prompt_length} + request.max_tokens;
  if (length > options_.max_sequence_length)
    refuse("prompt_length + max_tokens", length,
           "at most max_sequence_length=" + std::to_string(options_.max_sequence_length) +
               "; lower max_tokens or shorten the prompt");
}

std::int32_t Scheduler::submit(GroupRequest request) {
  validate(request);
  const std::int32_t size = options_.block_size;
  const auto n = static_cast<std::int32_t>(request.samples.size());
  const std::int32_t full_blocks = request.prompt_length / size;
  const std::int32_t tail_tokens = request.prompt_length % size;
  // The last token drawn is never fed, so it needs no place; a single token needs none but the prompt's.
  const bool single = request.max_tokens == 1;
  const std::int32_t shared_worst = full_blocks + (single && tail_tokens > 0);
  const std::int32_t row_worst = single ? 0 : ceil_div(std::int64_t{tail_tokens} + request.max_tokens - 1, size);
  const std::int64_t worst = shared_worst + std::int64_t{n} * row_worst;
  const std::int32_t one_row = shared_worst + row_worst;
  const std::string available = "at most num_blocks=" + std::to_string(options_.num_blocks) + "; ";
  if (one_row > options_.num_blocks)
    refuse("blocks of one row at its longest", one_row,
           available + "lower max_tokens, shorten the prompt, or raise num_blocks");
  if (policy_ == Policy::no_evict && worst > options_.num_blocks)
    refuse("blocks of the group at its longest", worst,
           available + "lower n or max_tokens, raise num_blocks, or choose policy watermark");
  if (policy_ == Policy::automatic && worst > options_.num_blocks) {
    if (holds_ > 0)
      refuse("blocks of the group at its longest", worst,
             available + "lower n or max_tokens, raise num_blocks, or release the held groups, which are not evicted");
    policy_ = Policy::watermark;
  }

  Group& group = add(std::move(request));
  group.full_blocks = full_blocks;
  group.tail_tokens = tail_tokens;
  group.shared_worst = shared_worst;
  group.row_worst = row_worst;
  waiting_.push_back(&group);
  return group.handle;
}

Group& Scheduler::add(GroupRequest request) {
  auto group = std::make_unique<Group>();
  group->handle = next_handle_++;
  group->rows.resize(request.samples.size());
  group->request = std::move(request);
  for (std::int32_t i = 0; i < group->num_rows(); ++i) {
    group->rows[i].group = group.get();
    group->rows[i].id = next_row_id_++;
    group->rows[i].index = i;
  }
  return *(groups_[group->handle] = std::move(group));
}

void Scheduler::commit(const std::int32_t* tokens, std::int64_t count, const float* records,
                       std::int64_t num_records) {
  if (!outstanding_) throw std::logic_error("commit: no plan is outstanding");
  const Extent step = ahead_ ? before_ : extent();
  if (count != step.draws) refuse("number of tokens", count, std::to_string(step.draws));
  const std::int64_t width = options_.record_width;
  if (num_records != count * width) refuse("size of records", num_records, std::to_string(count * width));

  if (plan_.kind == PlanKind::prefill) totals_.prefill_tokens += step.tokens;
  if (plan_.kind == PlanKind::extend) totals_.extend_tokens += step.tokens;
  if (plan_.kind == PlanKind::decode) totals_.decode_tokens += step.tokens;
  totals_.copies += step.copies;
  totals_.preemptions += static_cast<std::int64_t>(step.evictions);

  filling_ = plan_.kind == PlanKind::prefill;
  outstanding_ = std::exchange(ahead_, false);
  count = keep_alive(tokens, records, count);
  totals_.sampled_tokens += count;
  if (plan_.kind == PlanKind::prefill) {
    const auto first_row = static_cast<std::int32_t>(running_.size() - count);
    for (std::int64_t r = 0; r < count; ++r) {
      Row& row = *running_[first_row + r];
      const std::int32_t expected = std::min(row.group->request.max_tokens, kReservedTokens);
      row.tokens.reserve(expected);
      row.records.reserve(expected * width);
      row.tokens.push_back(tokens[r]);
      row.records.insert(row.records.end(), records + r * width, records + (r + 1) * width);
    }
    finish_drawn(first_row);
  } else if (plan_.kind == PlanKind::decode) {
    log(tokens, records, static_cast<std::int32_t>(count));
    bool may_end = --steps_to_length_ == 0;
    for (const std::int32_t stop : options_.stop_ids) {
      std::int32_t hits = 0;
      for (std::int64_t r = 0; r < count; ++r) hits += tokens[r] == stop;
      may_end |= hits > 0;
    }
    if (!outstanding_) std::copy_n(tokens, count, plan_.token_ids.data());  // what the next decode step feeds
    if (may_end) finish_drawn(0);
  }
  if (outstanding_) return settle_ahead();
  if (!growing_.empty()) settle_holds();
  apply_aborts();
}

void Scheduler::log(const std::int32_t* tokens, const float* records, std::int32_t count) {
  if (count == 0) return;
  if (log_steps_ == kLogSteps) write_log();
  log_rows_ = count;
  const auto begin = static_cast<std::size_t>(log_steps_++) * count;
  const std::int32_t width = options_.record_width;
  std::copy_n(tokens, count, log_tokens_.data() + begin);
  std::copy_n(records, static_cast<std::size_t>(count) * width, log_records_.data() + begin * width);
}

void Scheduler::write_log() {
  const std::int32_t steps = log_steps_;
  const std::size_t width = options_.record_width;
  const std::size_t stride = static_cast<std::size_t>(log_rows_) * width;
  for (std::int32_t r = 0; r < (steps > 0 ? log_rows_ : 0); ++r) {
    Row& row = *running_[r];
    const std::size_t drawn = row.tokens.size();
    row.tokens.resize(drawn + steps);
    row.records.resize((drawn + steps) * width);
    for (std::int32_t i = 0; i < steps; ++i)
      row.tokens[drawn + i] = log_tokens_[static_cast<std::size_t>(i) * log_rows_ + r];
    const float* from = log_records_.data() + r * width;
    float* to = row.records.data() + drawn * width;
    for (std::int32_t i = 0; i < steps; ++i, from += stride, to += width) std::copy_n(from, width, to);
  }
  log_steps_ = 0;
}

void Scheduler::finish_drawn(std::int32_t first_row) {
  write_log();
  const auto& stops = options_.stop_ids;
  bool any = false;
  for (auto it = running_.begin() + first_row; it != running_.end(); ++it) {
    Row& row = **it;
    const bool stopped = std::find(stops.begin(), stops.end(), row.tokens.back()) != stops.end();
    if (!stopped && row.drawn() < row.group->request.max_tokens) continue;
    finish(row, stopped ? Reason::stop : Reason::length);
    any = true;
  }
  if (!any) return;
  if (outstanding_) drop_from_ahead();
  std::erase_if(running_, [](const Row* row) { return row->state == RowState::done; });
  layout_valid_ = false;
}

void Scheduler::finish(Row& row, Reason reason) {
  Group& group = *row.group;
  if (outstanding_) std::erase(ahead_grown_, row.leaf);  // the block leaves with the leaf
  if (row.leaf != kNoNode) close_leaf(row);
  row.state = RowState::done;
  row.reason = reason;
  if (group.admitted) worst_running_ -= group.row_worst;
  if (group.root != nullptr) {
    --group.root->hold->alive_rows;
    ++reserved_places_;
  }
  if (++group.done_rows < group.num_rows()) return;
  if (group.admitted) worst_running_ -= group.shared_worst;
  if (group.root != nullptr) {
    std::erase(group.root->hold->forks, &group);
    group.root = nullptr;
  }
  finished_.push_back(group.handle);
}

void Scheduler::open_leaf(Row& row, NodeId leaf) {
  row.leaf = leaf;
  ++row.group->open_leaves;
}

void Scheduler::close_leaf(Row& row, std::vector<ClosedNode>* closed) {
  tree_.close(row.leaf, closed);
  row.leaf = kNoNode;
  --row.group->open_leaves;
}

void Scheduler::abort(std::int32_t handle) {
  const auto found = groups_.find(handle);
  if (found == groups_.end()) refuse("group", handle, "a handle that was neither taken nor released");
  if (outstanding_)
    aborts_.push_back(handle);
  else
    abort_now(*found->second);
}

void Scheduler::abort_now(Group& group) {
  if (group.hold != nullptr) return release_now(group);
  if (group.done_rows == group.num_rows()) return;
  write_log();
  for (Row& row : group.rows)
    if (row.state != RowState::done) finish(row, Reason::abort);
  const auto done = [](const Row* row) { return row->state == RowState::done; };
  if (std::erase_if(running_, done) > 0) layout_valid_ = false;
  std::erase_if(preempted_, done);
  if (!group.admitted) std::erase(waiting_, &group);
}

void Scheduler::apply_aborts() {
  for (const std::int32_t handle : aborts_)
    if (const auto found = groups_.find(handle); found != groups_.end()) abort_now(*found->second);
  aborts_.clear();
}

std::vector<std::int32_t> Scheduler::finished() { return std::exchange(finished_, {}); }

std::unique_ptr<Group> Scheduler::take(std::int32_t handle) {
  const auto found = groups_.find(handle);
  if (found == groups_.end() || found->second->done_rows < found->second->num_rows())
    refuse("group", handle, "a handle that finished() returned and that was not taken");
  std::unique_ptr<Group> group = std::move(found->second);
  groups_.erase(found);
  std::erase(finished_, handle);
  return group;
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = totals_;
  stats.free_blocks = pool_.free_count();
  stats.used_blocks = pool_.size() - pool_.free_count();
  stats.waiting = static_cast<std::int32_t>(waiting_.size());
  stats.running = static_cast<std::int32_t>(running_.size());
  stats.preempted = static_cast<std::int32_t>(preempted_.size());
  stats.held = held_stems_;
  return stats;
}

void Scheduler::audit() const {
  tree_.audit();
  const auto require = [](bool holds, const char* what) {
    if (!holds) throw std::logic_error(std::string("Scheduler: ") + what);
  };
  std::int32_t leaves = 0, holds = 0, admitted_holds = 0, held_nodes = 0, places = 0;
  std::int64_t worst = 0;
  for (const auto& [handle, group] : groups_) {
    std::int32_t open = 0, done = 0;
    for (const Row& row : group->rows) {
      open += row.leaf != kNoNode;
      done += row.state == RowState::done;
      require(row.state != RowState::running || row.leaf != kNoNode, "a running row has no leaf");
      require(row.state != RowState::done || row.leaf == kNoNode, "a row that ended has a leaf");
    }
    require(open == group->open_leaves && done == group->done_rows, "the counts of a group are wrong");
    if (group->admitted && done < group->num_rows())
      worst += group->shared_worst + std::int64_t{group->num_rows() - done} * group->row_worst;
    leaves += open + (open > 0 && group->full_blocks > 0);
    if (group->root != nullptr) places -= group->num_rows() - done;
    if (group->hold == nullptr) continue;
    leaves += group->hold->inner_nodes;
    ++holds;
    admitted_holds += group->admitted;
    held_nodes += group->admitted ? group->hold->worst_nodes : 0;
    places += group->admitted ? group->hold->fork_rows : 0;
    require(1 + open + group->hold->inner_nodes <= group->hold->worst_nodes, "a held group has too many nodes");
  }
  require(holds == holds_ && held_nodes == held_nodes_ && places == reserved_places_, "the count of holds is wrong");
  require(leaves == tree_.open_nodes(), "a node has no owner");
  require(worst == worst_running_, "the worst case of what runs is wrong");
  require(has_work() || admitted_holds > 0 || pool_.free_count() == pool_.size(), "idle, yet blocks are held");
  require(std::is_sorted(running_.begin(), running_.end(), runs_before), "running rows are not in order of age");
  require(std::is_sorted(preempted_.begin(), preempted_.end(), runs_before), "preempted rows are not in order of age");
  require(running_.empty() || preempted_.empty() || runs_before(running_.back(), preempted_.front()),
          "a preempted row is older than a running one");
}

}  // namespace mstar
