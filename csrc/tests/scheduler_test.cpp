// Invariants under a million random calls; what each plan must be is compared with the oracle in tests/rollout.
#include "rollout/scheduler.h"

#include <algorithm>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "step.h"

using namespace mstar;

namespace {

void a_group_runs_to_its_end() {
  Scheduler scheduler({16, 4, 4, 64, 32, {0}, Policy::no_evict, 0.0, 4});
  const std::int32_t group = scheduler.submit(request(6, 3, 2));
  CHECK(scheduler.next_plan() == PlanKind::prefill);
  CHECK(scheduler.plan().num_tokens == 6 && scheduler.plan().num_draws == 2);
  CHECK_THROWS(scheduler.next_plan(), std::logic_error);
  commit(scheduler, 5);
  CHECK(scheduler.next_plan() == PlanKind::decode);
  CHECK(scheduler.plan().num_copies == 1 && scheduler.plan().num_nodes == 3);
  scheduler.audit();
  commit(scheduler, 5);
  CHECK(scheduler.next_plan() == PlanKind::decode);
  CHECK(scheduler.plan().num_copies == 0);
  commit(scheduler, 0);
  CHECK(scheduler.finished() == std::vector<std::int32_t>{group});
  const auto taken = scheduler.take(group);
  CHECK(taken->rows[1].tokens == (std::vector<std::int32_t>{5, 5, 0}));
  CHECK(taken->rows[1].reason == Reason::stop);
  CHECK(!scheduler.has_work() && scheduler.next_plan() == PlanKind::idle);
  CHECK_THROWS(scheduler.take(group), std::invalid_argument);
}

void wrong_requests_are_refused() {
  CHECK_THROWS(Scheduler({0, 4, 4, 64, 32, {}, Policy::automatic, 0.0, 4}), std::invalid_argument);
  Scheduler scheduler({16, 4, 4, 64, 32, {}, Policy::no_evict, 0.0, 4});
  CHECK_THROWS(scheduler.submit(request(4, 4, 0)), std::invalid_argument);
  CHECK_THROWS(scheduler.submit(request(4, 4, 5)), std::invalid_argument);
  CHECK_THROWS(scheduler.submit(request(30, 3, 1)), std::invalid_argument);
  CHECK_THROWS(scheduler.submit(request(12, 20, 4)), std::invalid_argument);
  CHECK(!scheduler.has_work());
}

void random_calls_keep_the_invariants(std::int64_t steps) {
  std::mt19937 random(7);
  const auto draw = [&random](std::int32_t low, std::int32_t high) {
    return low + static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(high - low + 1));
  };
  std::int64_t done = 0, preemptions = 0, extended = 0, ahead = 0;
  while (done < steps) {
    const std::int32_t size = draw(1, 8), length = draw(8, 48);
    const auto policy = static_cast<Policy>(draw(0, 2));
    const std::int32_t blocks = (length + size - 1) / size + draw(0, 20);
    Scheduler scheduler({blocks, size, draw(1, 8), draw(1, 40), length, {0}, policy, draw(0, 2) * 0.1, 2});
    std::vector<std::int32_t> alive;
    for (int i = 0; i < 500 || scheduler.has_work(); ++i) {
      if (i < 500 && alive.size() < 4 && draw(0, 1) == 0) {
        const std::int32_t prompt = draw(1, length - 1);
        try {
          alive.push_back(
              scheduler.submit(request(prompt, draw(1, length - prompt), draw(1, scheduler.options().max_rows))));
        } catch (const std::invalid_argument&) {
        }
      }
      if (draw(0, 99) == 0 && !alive.empty()) scheduler.abort(alive[draw(0, static_cast<int>(alive.size()) - 1)]);
      const PlanKind kind = scheduler.next_plan();
      ++done;
      if (kind == PlanKind::decode) check_decode_plan(scheduler);
      if (kind != PlanKind::idle) {
        for (std::int32_t draws = scheduler.plan().num_draws; draw(0, 3) == 0 && scheduler.plan_ahead();) {
          check_decode_plan(scheduler);
          const std::int32_t next = scheduler.plan().num_draws;
          commit(scheduler, draw(0, 9) == 0 ? 0 : 5, std::exchange(draws, next));
          ++ahead;
        }
        if (draw(0, 19) == 0)
          scheduler.rollback();
        else
          commit(scheduler, draw(0, 9) == 0 ? 0 : 5);
      }
      if (done % 8 == 0) scheduler.audit();
      for (const std::int32_t handle : scheduler.finished()) {
        scheduler.take(handle);
        std::erase(alive, handle);
      }
    }
    scheduler.audit();
    CHECK(alive.empty());
    CHECK(scheduler.stats().used_blocks == 0);
    preemptions += scheduler.stats().preemptions;
    extended += scheduler.stats().extend_tokens;
  }
  CHECK(preemptions > steps / 1000 && extended > 0 && ahead > steps / 20);
}

}  // namespace

int main() {
  a_group_runs_to_its_end();
  wrong_requests_are_refused();
  random_calls_keep_the_invariants(1000000);
}
