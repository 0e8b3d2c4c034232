#include "rollout/block_pool.h"

#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.h"

using mstar::BlockPool;
using mstar::BlockRef;
using mstar::IdSet;

namespace {

void lowest_id_first_at_any_capacity() {
  for (const std::int32_t capacity : {1, 63, 64, 65, 4096, 4097, 300000}) {
    IdSet ids(capacity);
    CHECK(ids.size() == capacity);
    CHECK(ids.take_lowest() == 0);
    while (ids.size() > 0) ids.take_lowest();
    ids.insert(capacity - 1);
    ids.insert(capacity / 2);
    CHECK(ids.contains(capacity / 2));
    CHECK(ids.take_lowest() == capacity / 2);
  }
}

void a_set_agrees_with_std_set() {
  std::mt19937 random(1);
  IdSet ids(5000);
  std::set<std::int32_t> expected;
  for (std::int32_t id = 0; id < 5000; ++id) expected.insert(id);
  for (int i = 0; i < 200000; ++i) {
    const auto id = static_cast<std::int32_t>(random() % 5000);
    if (random() % 8 == 0 && !expected.empty()) {
      CHECK(ids.take_lowest() == *expected.begin());
      expected.erase(expected.begin());
    } else if (expected.contains(id)) {
      ids.erase(id);
      expected.erase(id);
    } else {
      ids.insert(id);
      expected.insert(id);
    }
    CHECK(ids.size() == static_cast<std::int32_t>(expected.size()));
  }
}

void a_block_is_free_when_nobody_refers_to_it() {
  BlockPool pool(3);
  {
    BlockRef first = pool.acquire();
    CHECK(first.id() == 0 && !first.shared());
    BlockRef again = first.share();
    CHECK(again.id() == 0 && first.shared() && pool.refs(0) == 2);
    BlockRef moved = std::move(first);
    CHECK(pool.refs(0) == 2);
    again = pool.acquire();
    CHECK(again.id() == 1);
    CHECK(pool.free_count() == 1);
  }
  CHECK(pool.free_count() == 3 && pool.is_free(0));
}

void adopt_takes_a_free_block_or_joins() {
  BlockPool pool(3);
  BlockRef second = pool.adopt(1);
  CHECK(pool.free_count() == 2 && !pool.is_free(1));
  BlockRef joined = pool.adopt(1);
  CHECK(second.shared());
  std::vector<BlockRef> rest;
  rest.push_back(pool.acquire());
  rest.push_back(pool.acquire());
  CHECK(rest[0].id() == 0 && rest[1].id() == 2);
  CHECK_THROWS(pool.acquire(), std::logic_error);
}

}  // namespace

int main() {
  lowest_id_first_at_any_capacity();
  a_set_agrees_with_std_set();
  a_block_is_free_when_nobody_refers_to_it();
  adopt_takes_a_free_block_or_joins();
}
