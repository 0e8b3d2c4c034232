#include "rollout/prefix_tree.h"

#include <stdexcept>
#include <string>

namespace mstar {

PrefixTree::PrefixTree(BlockPool& pool, std::int32_t block_size, std::int32_t max_nodes,
                       std::int32_t max_blocks_per_node)
    : pool_(pool),
      block_size_(block_size),
      width_(max_blocks_per_node),
      free_(max_nodes),
      nodes_(max_nodes),
      table_(static_cast<std::size_t>(max_nodes) * max_blocks_per_node, 0) {}

NodeId PrefixTree::open(NodeId parent, std::int32_t start) {
  if (free_.size() == 0) throw std::logic_error("PrefixTree: no free node");
  const NodeId id = free_.take_lowest();
  nodes_[id].parent = parent;
  nodes_[id].start = start;
  if (parent != kNoNode) ++nodes_[parent].children;
  return id;
}

NodeId PrefixTree::fork(NodeId node, std::int32_t num_blocks) {
  const NodeId twin = open(nodes_[node].parent, nodes_[node].start);
  for (std::int32_t j = 0; j < num_blocks; ++j) {
    const BlockRef& block = nodes_[node].blocks[j];
    entry(twin, j) = block.id();
    nodes_[twin].blocks.push_back(block.share());
  }
  return twin;
}

NodeId PrefixTree::split(NodeId leaf, std::int32_t num_blocks) {
  const NodeId inner = open(nodes_[leaf].parent, nodes_[leaf].start);
  Node& above = nodes_[inner];
  Node& below = nodes_[leaf];
  for (std::int32_t j = 0; j < num_blocks; ++j) {
    entry(inner, j) = below.blocks[j].id();
    above.blocks.push_back(std::move(below.blocks[j]));
  }
  below.blocks.erase(below.blocks.begin(), below.blocks.begin() + num_blocks);
  for (std::int32_t j = 0; j < this->num_blocks(leaf); ++j) entry(leaf, j) = below.blocks[j].id();
  if (below.parent != kNoNode) --nodes_[below.parent].children;  // the inner node took the leaf's place
  below.parent = inner;
  below.start += num_blocks * block_size_;
  above.children = 1;
  return inner;
}

void PrefixTree::close(NodeId leaf, std::vector<ClosedNode>* closed) {
  for (NodeId id = leaf; id != kNoNode && nodes_[id].children == 0;) {
    Node& node = nodes_[id];
    const NodeId parent = node.parent;
    if (closed != nullptr) {
      closed->push_back({id, parent, node.start, {}});
      for (const BlockRef& block : node.blocks) closed->back().blocks.push_back(block.id());
    }
    node.blocks.clear();
    free_.insert(id);
    if (parent != kNoNode) --nodes_[parent].children;
    id = parent;
  }
}

void PrefixTree::reopen(const ClosedNode& closed) {
  free_.erase(closed.id);
  Node& node = nodes_[closed.id];
  node.parent = closed.parent;
  node.start = closed.start;
  if (closed.parent != kNoNode) ++nodes_[closed.parent].children;
  for (const std::int32_t block : closed.blocks) {
    entry(closed.id, num_blocks(closed.id)) = block;
    node.blocks.push_back(pool_.adopt(block));
  }
}

std::int32_t PrefixTree::append(NodeId node) {
  auto& blocks = nodes_[node].blocks;
  blocks.push_back(pool_.acquire());
  return entry(node, static_cast<std::int32_t>(blocks.size()) - 1) = blocks.back().id();
}

void PrefixTree::pop(NodeId node) { nodes_[node].blocks.pop_back(); }

BlockCopy PrefixTree::make_private(NodeId node, std::int32_t index) {
  BlockRef fresh = pool_.acquire();
  BlockRef& held = nodes_[node].blocks[index];
  const BlockCopy copy{held.id(), fresh.id()};
  held = std::move(fresh);
  entry(node, index) = copy.dst;
  return copy;
}

void PrefixTree::make_shared(NodeId node, std::int32_t index, std::int32_t block) {
  BlockRef shared = pool_.adopt(block);
  nodes_[node].blocks[index] = std::move(shared);
  entry(node, index) = block;
}

void PrefixTree::audit() const {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) throw std::logic_error("PrefixTree: " + what);
  };
  std::vector<std::int32_t> refs(pool_.size(), 0);
  std::vector<std::int32_t> children(nodes_.size(), 0);
  for (NodeId id = 0; id < max_nodes(); ++id) {
    const Node& node = nodes_[id];
    if (free_.contains(id)) {
      require(node.blocks.empty() && node.children == 0, "closed node " + std::to_string(id) + " holds something");
      continue;
    }
    require(node.start % block_size_ == 0, "node " + std::to_string(id) + " starts inside a block");
    if (node.parent != kNoNode) {
      require(!free_.contains(node.parent), "node " + std::to_string(id) + " has a closed parent");
      require(nodes_[node.parent].start + num_blocks(node.parent) * block_size_ == node.start,
              "node " + std::to_string(id) + " does not start where its parent ends");
      ++children[node.parent];
    }
    for (std::int32_t j = 0; j < num_blocks(id); ++j) {
      ++refs[block(id, j)];
      require(table_[static_cast<std::size_t>(id) * width_ + j] == block(id, j),
              "block table of node " + std::to_string(id) + " is stale");
    }
  }
  for (NodeId id = 0; id < max_nodes(); ++id)
    require(free_.contains(id) || children[id] == nodes_[id].children, "children of node " + std::to_string(id));
  std::int32_t used = 0;
  for (std::int32_t block = 0; block < pool_.size(); ++block) {
    require(refs[block] == pool_.refs(block), "references to block " + std::to_string(block));
    require(pool_.is_free(block) == (refs[block] == 0), "free mark of block " + std::to_string(block));
    used += refs[block] > 0;
  }
  require(used + pool_.free_count() == pool_.size(), "free and used blocks do not add up");
}

}  // namespace mstar
