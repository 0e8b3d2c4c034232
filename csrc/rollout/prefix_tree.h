// The tree of shared prefixes. A node is a run of tokens with its own blocks; a live row is a leaf.
//
// A node stores no length. An inner node covers whole blocks only, so its length is its blocks; a leaf is as long as
// its row's sequence reaches beyond the leaf's start. Nothing can get out of step. A node lives while something below
// it does: closing the last child closes its parent.
#pragma once

#include <cstdint>
#include <vector>

#include "rollout/block_pool.h"

namespace mstar {

using NodeId = std::int32_t;  // also the node's row of the block table
inline constexpr NodeId kNoNode = -1;

struct BlockCopy {
  std::int32_t src = -1;
  std::int32_t dst = -1;
};

// What close() took away, enough to bring it back.
struct ClosedNode {
  NodeId id;
  NodeId parent;
  std::int32_t start;
  std::vector<std::int32_t> blocks;
};

class PrefixTree {
 public:
  PrefixTree(BlockPool& pool, std::int32_t block_size, std::int32_t max_nodes, std::int32_t max_blocks_per_node);

  // A new node below `parent` (kNoNode: a root) whose first token has sequence index `start`, a multiple of the
  // block size. It has no block yet.
  NodeId open(NodeId parent, std::int32_t start);
  // A sibling of the leaf which refers to the same blocks. Whoever writes one of them first makes it private.
  NodeId fork(NodeId leaf) { return fork(leaf, num_blocks(leaf)); }
  // The same of any node's first `num_blocks` blocks only.
  NodeId fork(NodeId node, std::int32_t num_blocks);
  // The first `num_blocks` blocks of the leaf become a new node between it and its parent, so that leaves forked
  // from it share them as a node. The blocks must be full.
  NodeId split(NodeId leaf, std::int32_t num_blocks);
  // Closes a node without children, and every ancestor that this leaves without any. Appends what was closed to
  // `closed`, in order; reopen() in the opposite order restores it.
  void close(NodeId leaf, std::vector<ClosedNode>* closed = nullptr);
  void reopen(const ClosedNode& closed);

  // One more block at the end of the node; its id.
  std::int32_t append(NodeId node);
  void pop(NodeId node);
  // Copy-on-write: replaces a shared block by a fresh one. The caller copies the contents.
  BlockCopy make_private(NodeId node, std::int32_t index);
  // Undoes make_private.
  void make_shared(NodeId node, std::int32_t index, std::int32_t block);

  NodeId parent(NodeId node) const { return nodes_[node].parent; }
  std::int32_t start(NodeId node) const { return nodes_[node].start; }
  std::int32_t num_blocks(NodeId node) const { return static_cast<std::int32_t>(nodes_[node].blocks.size()); }
  std::int32_t block(NodeId node, std::int32_t index) const { return nodes_[node].blocks[index].id(); }
  bool shared(NodeId node, std::int32_t index) const { return nodes_[node].blocks[index].shared(); }
  std::int32_t open_nodes() const { return free_.capacity() - free_.size(); }

  std::int32_t max_nodes() const { return free_.capacity(); }
  std::int32_t max_blocks_per_node() const { return width_; }
  // [max_nodes, max_blocks_per_node]; entry [node, j] is the node's j-th block. Entries beyond are stale.
  std::vector<std::int32_t>& block_table() { return table_; }

  // Throws std::logic_error when a count, a link or the table is wrong.
  void audit() const;

 private:
  struct Node {
    NodeId parent = kNoNode;
    std::int32_t start = 0;
    std::int32_t children = 0;
    std::vector<BlockRef> blocks;
  };

  std::int32_t& entry(NodeId node, std::int32_t index) {
    return table_[static_cast<std::size_t>(node) * width_ + index];
  }

  BlockPool& pool_;
  std::int32_t block_size_;
  std::int32_t width_;
  IdSet free_;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> table_;
};

}  // namespace mstar
