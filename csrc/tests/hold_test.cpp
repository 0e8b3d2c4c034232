// Held stems and forks: where stems are split, what forks share, what a rollback brings back. What each plan must be is
// compared with the oracle in tests/rollout.
#include <algorithm>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "rollout/scheduler.h"
#include "step.h"

using namespace mstar;

namespace {

SchedulerOptions options(std::int32_t block_size) {
  return {200, block_size, 12, 16, 40, {0}, Policy::no_evict, 0.0, 2, 1, 30};
}

HoldRequest stem_of(std::int32_t prompt_length, std::int32_t length, std::vector<std::int32_t> offsets) {
  HoldRequest request{prompt_length, {}, {length}, {std::move(offsets)}, 8, 6};
  for (std::int32_t i = 0; i < length; ++i) request.tokens.push_back(100 + i);
  return request;
}

std::int32_t made_ready(Scheduler& scheduler, HoldRequest request) {
  const std::int32_t held = scheduler.hold(std::move(request));
  while (scheduler.next_plan() != PlanKind::idle) commit(scheduler, 5);
  CHECK(scheduler.ready() == std::vector<std::int32_t>{held});
  scheduler.audit();
  return held;
}

// Forks one row at each offset and checks that the rows share the stem exactly up to the last whole block before the
// token that they feed.
void forks_share_whole_blocks(std::int32_t size, std::int32_t prompt_length) {
  Scheduler scheduler(options(size));
  const std::vector<std::int32_t> offsets{1, 2, 5, 8, 9};
  const std::int32_t held = made_ready(scheduler, stem_of(prompt_length, 12, offsets));
  const std::int32_t stem_blocks = scheduler.stats().used_blocks;
  CHECK(stem_blocks == (prompt_length + 8 + size - 1) / size);
  for (auto offset = offsets.rbegin(); offset != offsets.rend(); ++offset)
    scheduler.fork(held, 0, *offset, request(0, 6, 1));
  scheduler.audit();
  CHECK(scheduler.stats().used_blocks == stem_blocks);  // nothing is written yet
  CHECK(scheduler.next_plan() == PlanKind::decode);
  check_decode_plan(scheduler);
  const Plan& plan = scheduler.plan();
  std::set<std::int32_t> starts;
  for (std::size_t r = 0; r < offsets.size(); ++r) {
    const std::int32_t prefix = prompt_length + offsets[r];
    CHECK(plan.token_ids[r] == 100 + offsets[r] - 1 && plan.positions[r] == prefix - 1);
    CHECK(plan.position[r] == offsets[r]);
    const std::int32_t leaf = plan.num_nodes - plan.num_rows + static_cast<std::int32_t>(r);
    CHECK(plan.node_start[leaf] == (prefix - 1) / size * size);
    starts.insert(plan.node_start[leaf]);
  }
  starts.insert(prompt_length / size * size);
  starts.erase(0);
  CHECK(plan.num_nodes - plan.num_rows == static_cast<std::int32_t>(starts.size()));
  std::int32_t inside = 0;
  for (const std::int32_t offset : offsets) inside += (prompt_length + offset - 1) % size != 0;
  CHECK(plan.num_copies == inside);
  scheduler.rollback();
  scheduler.audit();
  CHECK(scheduler.stats().used_blocks == stem_blocks);
  while (scheduler.next_plan() != PlanKind::idle) commit(scheduler, 5);
  CHECK(scheduler.finished().size() == offsets.size());
  CHECK(scheduler.stats().used_blocks == stem_blocks);
  scheduler.release(held);
  scheduler.audit();
  CHECK(scheduler.stats().used_blocks == 0 && scheduler.tree().open_nodes() == 0);
}

void a_rolled_back_extend_is_planned_again() {
  Scheduler scheduler(options(4));
  HoldRequest request = stem_of(6, 12, {3, 12});
  request.tokens.insert(request.tokens.end(), request.tokens.begin(), request.tokens.begin() + 12);
  request.lengths.push_back(12);
  request.offsets.push_back({7});
  scheduler.hold(request);
  CHECK(scheduler.next_plan() == PlanKind::prefill);
  scheduler.rollback();
  scheduler.audit();
  CHECK(scheduler.stats().used_blocks == 0);
  CHECK(scheduler.next_plan() == PlanKind::prefill);
  commit(scheduler, 5);
  for (const std::int32_t tokens : {11, 6}) {  // together they are more than max_prefill_tokens
    CHECK(scheduler.next_plan() == PlanKind::extend && scheduler.plan().num_tokens == tokens);
    const std::vector<std::int32_t> slots = scheduler.plan().slots;
    const std::int32_t copies = scheduler.plan().num_copies;
    scheduler.rollback();
    scheduler.audit();
    CHECK(scheduler.next_plan() == PlanKind::extend && scheduler.plan().num_tokens == tokens);
    CHECK(scheduler.plan().slots == slots && scheduler.plan().num_copies == copies);
    CHECK(scheduler.ready().empty());
    commit(scheduler, 5);
  }
  CHECK(scheduler.ready().size() == 1);
}

void wrong_calls_are_refused() {
  Scheduler scheduler(options(4));
  CHECK_THROWS(scheduler.hold(stem_of(6, 12, {13})), std::invalid_argument);
  HoldRequest short_of_tokens = stem_of(6, 12, {12});
  short_of_tokens.tokens.pop_back();
  CHECK_THROWS(scheduler.hold(short_of_tokens), std::invalid_argument);
  const std::int32_t held = scheduler.hold(stem_of(6, 12, {12}));
  CHECK_THROWS(scheduler.fork(held, 0, 12, request(0, 6, 1)), std::invalid_argument);
  CHECK(scheduler.next_plan() == PlanKind::prefill);
  CHECK_THROWS(scheduler.fork(held, 0, 12, request(0, 6, 1)), std::logic_error);
  CHECK_THROWS(scheduler.release(held), std::logic_error);
  CHECK_THROWS(scheduler.take(held), std::invalid_argument);
}

void random_calls_keep_the_invariants(std::int64_t steps) {
  std::mt19937 random(11);
  const auto draw = [&random](std::int32_t low, std::int32_t high) {
    return low + static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  std::int64_t done = 0, forked = 0, released = 0;
  while (done < steps) {
    const std::int32_t size = draw(1, 8), length = draw(24, 48);
    Scheduler scheduler({200, size, draw(2, 12), draw(1, 40), length, {0}, Policy::no_evict, 0.0, 2, 1, 40});
    const std::int32_t max_rows = scheduler.options().max_rows;
    std::vector<std::int32_t> waiting, held;
    std::map<std::int32_t, std::vector<std::int32_t>> offsets;
    for (int i = 0; i < 400; ++i) {
      if (draw(0, 3) == 0 && scheduler.stats().waiting < 2) {
        const std::int32_t prompt = draw(1, 8), stem = draw(1, 7);
        if (draw(0, 1) == 0) {
          scheduler.submit(request(prompt, draw(1, 8), draw(1, max_rows)));
        } else if (held.size() + waiting.size() < 4) {
          HoldRequest wanted = stem_of(prompt, stem, {});
          for (std::int32_t b = 1; b <= stem; ++b)
            if (b == stem || draw(0, 1) == 0) wanted.offsets[0].push_back(b);
          wanted.fork_rows = draw(1, std::min(4, max_rows));
          wanted.max_tokens = 8;
          const std::vector<std::int32_t> allowed = wanted.offsets[0];
          waiting.push_back(scheduler.hold(std::move(wanted)));
          offsets[waiting.back()] = allowed;
        }
      }
      for (const std::int32_t handle : scheduler.ready()) {
        std::erase(waiting, handle);
        held.push_back(handle);
      }
      if (!held.empty()) {
        const std::int32_t handle = held[draw(0, static_cast<int>(held.size()) - 1)];
        const auto& allowed = offsets[handle];
        try {
          const std::int32_t offset = allowed[draw(0, static_cast<int>(allowed.size()) - 1)];
          scheduler.fork(handle, 0, offset, request(0, draw(1, 8), draw(1, 2)));
          ++forked;
        } catch (const std::invalid_argument&) {  // too many rows
        }
        if (draw(0, 9) == 0) {
          scheduler.abort(handle);
          std::erase(held, handle);
          ++released;
        }
      }
      const PlanKind kind = scheduler.next_plan();
      ++done;
      if (kind == PlanKind::decode) check_decode_plan(scheduler);
      if (kind != PlanKind::idle) {
        if (draw(0, 9) == 0)
          scheduler.rollback();
        else
          commit(scheduler, draw(0, 9) == 0 ? 0 : 5);
      }
      if (done % 4 == 0) scheduler.audit();
      for (const std::int32_t handle : scheduler.finished()) scheduler.take(handle);
    }
    for (const std::int32_t handle : waiting) scheduler.abort(handle);
    for (const std::int32_t handle : held) scheduler.abort(handle);
    while (scheduler.next_plan() != PlanKind::idle) commit(scheduler, 5);
    scheduler.audit();
    CHECK(!scheduler.has_work() && scheduler.stats().used_blocks == 0 && scheduler.tree().open_nodes() == 0);
  }
  CHECK(forked > steps / 20 && released > steps / 100);
}

}  // namespace

int main() {
  for (std::int32_t size = 1; size <= 8; ++size)
    for (std::int32_t prompt = 1; prompt <= 17; ++prompt) forks_share_whole_blocks(size, prompt);
  a_rolled_back_extend_is_planned_again();
  wrong_calls_are_refused();
  random_calls_keep_the_invariants(200000);
}
