// Held stems and the groups forked from them.
//
// A stem is a row of its held group whose tokens are given up to the last offset. When all are resident, each stem's
// leaf is split where its forks begin, at the last whole block before the token that they feed first. So a fork is a
// leaf below an inner node, and shares the stem's next block until it writes to it.
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "rollout/refusal.h"
#include "rollout/scheduler.h"

namespace mstar {
namespace {

// Sequence index of the first token in the leaf of a row forked after `prefix` tokens, the last of which it feeds.
std::int32_t fork_start(std::int32_t prefix, std::int32_t block_size) { return (prefix - 1) / block_size * block_size; }

std::string of_stem(const std::string& what, std::size_t stem) { return what + " of stem " + std::to_string(stem); }

}  // namespace

void Scheduler::validate(const HoldRequest& request) const {
  if (policy_ == Policy::watermark)
    throw std::invalid_argument("policy=watermark; allowed: no_evict, or auto while no group needs more blocks than " +
                                std::to_string(options_.num_blocks) + "; held stems are not evicted");
  if (request.lengths.empty()) refuse("number of stems", 0, "1 or more");
  if (request.offsets.size() != request.lengths.size())
    refuse("length of offsets", request.offsets.size(), "that of stems, " + std::to_string(request.lengths.size()));
  for (std::size_t i = 0; i < request.lengths.size(); ++i) {
    const std::int32_t length = request.lengths[i];
    if (length < 1) refuse(of_stem("tokens", i), length, "1 or more");
    if (request.offsets[i].empty()) refuse(of_stem("number of offsets", i), 0, "1 or more");
    std::int32_t last = 0;
    for (const std::int32_t offset : request.offsets[i]) {
      if (offset <= last || offset > length)
        refuse(of_stem("offset", i), offset,
               "ascending, " + std::to_string(last + 1) + " to the stem's length, " + std::to_string(length));
      last = offset;
    }
  }
  const std::int64_t total = std::accumulate(request.lengths.begin(), request.lengths.end(), std::int64_t{0});
  if (total != static_cast<std::int64_t>(request.tokens.size()))
    refuse("number of tokens", request.tokens.size(), "the sum of the lengths, " + std::to_string(total));
  for (const std::int32_t token : request.tokens)
    if (token < 0) refuse("token of a stem", token, "0 or more");
  if (request.prompt_length < 1) refuse("prompt_length", request.prompt_length, "1 or more tokens");
  if (request.max_tokens < 1) refuse("max_tokens", request.max_tokens, "1 or more tokens");
  if (request.fork_rows < 1 || request.fork_rows > options_.max_rows)
    refuse("fork_rows", request.fork_rows, "1 to max_rows=" + std::to_string(options_.max_rows));
  const std::int32_t longest = *std::max_element(request.lengths.begin(), request.lengths.end());
  const std::int64_t length = std::int64_t{request.prompt_length} + longest + request.max_tokens;
  if (length > options_.max_sequence_length)
    refuse("prompt_length + longest stem + max_tokens", length,
           "at most max_sequence_length=" + std::to_string(options_.max_sequence_length) +
               "; lower max_tokens or shorten the prompt or the stems");
}

std::int32_t Scheduler::hold(HoldRequest request) {
  validate(request);
  const std::int32_t size = options_.block_size;
  const auto n = static_cast<std::int32_t>(request.lengths.size());
  const std::int32_t full_blocks = request.prompt_length / size;
  const std::int32_t tail_tokens = request.prompt_length % size;
  const auto blocks = [size](std::int64_t tokens) { return (tokens + size - 1) / size; };
  std::int64_t worst = full_blocks + request.fork_rows * blocks(std::int64_t{size} - 1 + request.max_tokens);
  std::int64_t nodes = 1;
  for (const auto& offsets : request.offsets) {
    worst += blocks(std::int64_t{tail_tokens} + offsets.back() - 1);
    nodes += 1 + static_cast<std::int64_t>(offsets.size());
  }
  if (worst > options_.num_blocks)
    refuse("blocks of the held group at its longest", worst,
           "at most num_blocks=" + std::to_string(options_.num_blocks) +
               "; lower fork_rows or max_tokens, hold fewer stems, or raise num_blocks");
  if (nodes > options_.max_held_nodes)
    refuse("nodes of the held group", nodes,
           "at most max_held_nodes=" + std::to_string(options_.max_held_nodes) +
               "; hold fewer stems or offsets, or raise max_held_nodes");

  GroupRequest stems{request.prompt_length, request.max_tokens, 0, 0, std::vector<std::int32_t>(n), {}, {}, {}, {}};
  std::iota(stems.samples.begin(), stems.samples.end(), 0);
  stems.temperature.assign(n, 1.0f);
  stems.top_k.assign(n, 0);
  stems.top_p.assign(n, 1.0f);
  stems.min_p.assign(n, 0.0f);
  Group& group = add(std::move(stems));
  group.full_blocks = full_blocks;
  group.tail_tokens = tail_tokens;
  group.shared_worst = static_cast<std::int32_t>(worst);
  auto token = request.tokens.begin();
  for (Row& stem : group.rows) {
    stem.tokens.assign(token, token + request.offsets[stem.index].back());
    token += request.lengths[stem.index];
  }
  group.hold = std::make_unique<Hold>();
  group.hold->offsets = std::move(request.offsets);
  group.hold->fork_rows = request.fork_rows;
  group.hold->worst_nodes = static_cast<std::int32_t>(nodes);
  ++holds_;
  waiting_.push_back(&group);
  return group.handle;
}

std::vector<std::int32_t> Scheduler::ready() { return std::exchange(ready_, {}); }

Group& Scheduler::held(std::int32_t handle) const {
  const auto found = groups_.find(handle);
  if (found == groups_.end() || found->second->hold == nullptr)
    refuse("hold", handle, "a handle of hold that was not released");
  return *found->second;
}

// --- stems --------------------------------------------------------------------------------------------------------

bool Scheduler::plan_stems() {
  if (growing_.empty()) return false;
  plan_.reset(PlanKind::extend);
  for (Group* group : growing_) {
    for (std::int32_t& i = group->hold->computed; i < group->num_rows(); ++i) {
      Row& stem = group->rows[i];
      if (stem.drawn() == 1) continue;  // its forks feed all of it
      const bool full = plan_.num_rows == options_.max_rows ||
                        plan_.num_tokens + stem.drawn() - 1 > options_.max_prefill_tokens;
      if (plan_.num_rows > 0 && full) {
        write_nodes(computed_.data(), 1);
        return true;
      }
      compute(stem);
    }
  }
  write_nodes(computed_.data(), 1);
  return true;
}

void Scheduler::compute(Row& stem) {
  if (stem.group->tail_tokens > 0 && tree_.shared(stem.leaf, 0)) make_private(stem.leaf, 0);
  while (tree_.num_blocks(stem.leaf) < leaf_blocks(stem)) {
    tree_.append(stem.leaf);
    grown_.push_back(stem.leaf);
  }
  write_run(stem);
  computed_.push_back(&stem);
}

// After a step: which held groups are complete.
void Scheduler::settle_holds() {
  std::erase_if(growing_, [this](Group* group) {
    Hold& hold = *group->hold;
    while (hold.computed < group->num_rows() && group->rows[hold.computed].drawn() == 1) ++hold.computed;
    if (hold.computed < group->num_rows()) return false;
    split(*group);
    hold.ready = true;
    held_stems_ += group->num_rows();
    ready_.push_back(group->handle);
    return true;
  });
}

void Scheduler::split(Group& group) {
  const std::int32_t size = options_.block_size;
  for (const Row& stem : group.rows) {
    for (const std::int32_t offset : group.hold->offsets[stem.index]) {
      const std::int32_t start = fork_start(group.request.prompt_length + offset, size);
      if (start == tree_.start(stem.leaf)) continue;
      tree_.split(stem.leaf, (start - tree_.start(stem.leaf)) / size);
      ++group.hold->inner_nodes;
    }
  }
}

// --- forks --------------------------------------------------------------------------------------------------------

std::int32_t Scheduler::fork(std::int32_t handle, std::int32_t stem, std::int32_t offset, GroupRequest request) {
  if (outstanding_) throw std::logic_error("fork: the last plan was neither committed nor rolled back");
  Group& root = held(handle);
  Hold& hold = *root.hold;
  if (!hold.ready) refuse("hold", handle, "a hold that is ready");
  if (stem < 0 || stem >= root.num_rows()) refuse("stem", stem, "0 to " + std::to_string(root.num_rows() - 1));
  const auto& offsets = hold.offsets[stem];
  if (!std::binary_search(offsets.begin(), offsets.end(), offset))
    refuse(of_stem("offset", stem), offset, "the offsets that hold declared");
  request.prompt_length = root.request.prompt_length + offset;
  validate(request);
  if (request.max_tokens > root.request.max_tokens)
    refuse("max_tokens", request.max_tokens, "at most the hold's, " + std::to_string(root.request.max_tokens));
  const auto n = static_cast<std::int32_t>(request.samples.size());
  if (n > hold.fork_rows - hold.alive_rows)
    refuse("n", n,
           "at most " + std::to_string(hold.fork_rows - hold.alive_rows) + ": fork_rows=" +
               std::to_string(hold.fork_rows) + ", of which " + std::to_string(hold.alive_rows) + " are alive");

  write_log();
  layout_valid_ = false;
  Group& group = add(std::move(request));
  const std::int32_t prefix = group.request.prompt_length;
  const std::int32_t start = fork_start(prefix, options_.block_size);
  group.root = &root;
  group.stem = stem;
  group.offset = offset;
  group.last_token = root.rows[stem].tokens[offset - 1];
  group.tail_tokens = prefix - start;
  group.admitted = true;
  NodeId beside = root.rows[stem].leaf;
  while (tree_.start(beside) > start) beside = tree_.parent(beside);
  const std::int32_t reserve = std::min(group.request.max_tokens, kReservedTokens);
  std::vector<Row*> rows;
  for (Row& row : group.rows) {
    open_leaf(row, tree_.fork(beside, prefix - 1 > start));
    row.state = RowState::running;
    row.tokens.reserve(reserve);
    row.records.reserve(static_cast<std::size_t>(reserve) * options_.record_width);
    rows.push_back(&row);
  }
  const auto place = std::upper_bound(running_.begin(), running_.end(), rows.front(), runs_before);
  running_.insert(place, rows.begin(), rows.end());
  hold.alive_rows += n;
  hold.forks.push_back(&group);
  reserved_places_ -= n;
  return group.handle;
}

void Scheduler::release(std::int32_t handle) {
  if (outstanding_) throw std::logic_error("release: the last plan was neither committed nor rolled back");
  Group& group = held(handle);
  if (group.hold->alive_rows > 0)
    refuse("forked rows alive", group.hold->alive_rows, "0; let them end or abort them first");
  release_now(group);
}

void Scheduler::release_now(Group& group) {
  Hold& hold = *group.hold;
  while (!hold.forks.empty()) abort_now(*hold.forks.front());
  if (group.admitted) {
    for (Row& stem : group.rows) close_leaf(stem);
    worst_running_ -= group.worst_blocks();
    reserved_places_ -= hold.fork_rows;
    held_nodes_ -= hold.worst_nodes;
    if (hold.ready) held_stems_ -= group.num_rows();
    std::erase(growing_, &group);
  } else {
    std::erase(waiting_, &group);
  }
  --holds_;
  std::erase(ready_, group.handle);
  groups_.erase(group.handle);
}

}  // namespace mstar
