#include "rollout/prefix_tree.h"

#include <stdexcept>
#include <vector>

#include "check.h"

using namespace mstar;

namespace {

constexpr std::int32_t kBlockSize = 4;

void closing_the_last_child_closes_its_parents() {
  BlockPool pool(16);
  PrefixTree tree(pool, kBlockSize, 8, 4);
  const NodeId prompt = tree.open(kNoNode, 0);
  tree.append(prompt);
  const NodeId first = tree.open(prompt, 4);
  tree.append(first);
  const NodeId second = tree.fork(first);
  tree.audit();
  CHECK(tree.shared(first, 0) && tree.block(second, 0) == 1);
  tree.close(first);
  tree.audit();
  CHECK(tree.open_nodes() == 2 && !tree.shared(second, 0));
  tree.close(second);
  tree.audit();
  CHECK(tree.open_nodes() == 0 && pool.free_count() == 16);
}

void reopen_restores_what_close_took() {
  BlockPool pool(16);
  PrefixTree tree(pool, kBlockSize, 8, 4);
  const NodeId prompt = tree.open(kNoNode, 0);
  tree.append(prompt);
  const NodeId leaf = tree.open(prompt, 4);
  tree.append(leaf);
  tree.append(leaf);
  std::vector<ClosedNode> closed;
  tree.close(leaf, &closed);
  CHECK(closed.size() == 2 && closed[0].id == leaf && closed[1].id == prompt);
  for (auto node = closed.rbegin(); node != closed.rend(); ++node) tree.reopen(*node);
  tree.audit();
  CHECK(tree.parent(leaf) == prompt && tree.start(leaf) == 4 && tree.num_blocks(leaf) == 2);
  CHECK(tree.block(prompt, 0) == 0 && tree.block(leaf, 1) == 2 && pool.free_count() == 13);
}

void a_written_block_becomes_private() {
  BlockPool pool(4);
  PrefixTree tree(pool, kBlockSize, 4, 2);
  const NodeId first = tree.open(kNoNode, 0);
  tree.append(first);
  const NodeId second = tree.fork(first);
  const BlockCopy copy = tree.make_private(first, 0);
  CHECK(copy.src == 0 && copy.dst == 1);
  CHECK(!tree.shared(first, 0) && !tree.shared(second, 0));
  tree.audit();
  tree.make_shared(first, 0, copy.src);
  CHECK(tree.shared(first, 0) && pool.free_count() == 3);
  tree.audit();
}

// A fork at a step boundary: what both continuations share becomes a node of its own, at any depth.
void split_and_fork_grow_a_deeper_tree() {
  BlockPool pool(32);
  PrefixTree tree(pool, kBlockSize, 16, 8);
  const NodeId prompt = tree.open(kNoNode, 0);
  tree.append(prompt);
  const NodeId leaf = tree.open(prompt, 4);
  for (int j = 0; j < 5; ++j) tree.append(leaf);
  const NodeId shared = tree.split(leaf, 2);
  tree.audit();
  CHECK(tree.parent(leaf) == shared && tree.parent(shared) == prompt);
  CHECK(tree.start(shared) == 4 && tree.start(leaf) == 12);
  CHECK(tree.num_blocks(shared) == 2 && tree.num_blocks(leaf) == 3);
  const NodeId twin = tree.fork(leaf);
  tree.split(twin, 1);
  tree.audit();
  CHECK(tree.start(twin) == 16 && tree.parent(tree.parent(tree.parent(twin))) == prompt);
  tree.close(leaf);
  tree.audit();
  tree.close(twin);
  tree.audit();
  CHECK(tree.open_nodes() == 0 && pool.free_count() == 32);
}

// A fork inside a node: below the node's parent, beside it, with the first of its blocks only.
void a_fork_may_take_the_first_blocks_of_an_inner_node() {
  BlockPool pool(16);
  PrefixTree tree(pool, kBlockSize, 8, 4);
  const NodeId leaf = tree.open(kNoNode, 0);
  for (int j = 0; j < 4; ++j) tree.append(leaf);
  const NodeId above = tree.split(leaf, 1);
  const NodeId middle = tree.split(leaf, 2);
  const NodeId partial = tree.fork(middle, 1);
  const NodeId none = tree.fork(middle, 0);
  tree.audit();
  CHECK(tree.parent(partial) == above && tree.start(partial) == 4 && tree.num_blocks(partial) == 1);
  CHECK(tree.shared(partial, 0) && tree.shared(middle, 0) && !tree.shared(middle, 1));
  CHECK(tree.parent(none) == above && tree.num_blocks(none) == 0);
  tree.make_private(partial, 0);
  tree.audit();
  CHECK(!tree.shared(middle, 0));
  tree.close(partial);
  tree.close(none);
  tree.audit();
  CHECK(tree.open_nodes() == 3 && pool.free_count() == 12);
  tree.close(leaf);
  CHECK(tree.open_nodes() == 0 && pool.free_count() == 16);
}

void nodes_run_out_loudly() {
  BlockPool pool(2);
  PrefixTree tree(pool, kBlockSize, 1, 1);
  tree.open(kNoNode, 0);
  CHECK_THROWS(tree.open(kNoNode, 0), std::logic_error);
}

}  // namespace

int main() {
  closing_the_last_child_closes_its_parents();
  reopen_restores_what_close_took();
  a_written_block_becomes_private();
  split_and_fork_grow_a_deeper_tree();
  a_fork_may_take_the_first_blocks_of_an_inner_node();
  nodes_run_out_loudly();
}
