#include "rollout/block_pool.h"

#include <stdexcept>

namespace mstar {

BlockPool::BlockPool(std::int32_t num_blocks) : free_(num_blocks), refs_(num_blocks, 0) {}

BlockRef BlockPool::acquire() {
  if (free_.size() == 0) throw std::logic_error("BlockPool: no free block");
  const std::int32_t block = free_.take_lowest();
  refs_[block] = 1;
  return BlockRef(this, block);
}

BlockRef BlockPool::adopt(std::int32_t block) {
  if (refs_[block]++ == 0) free_.erase(block);
  return BlockRef(this, block);
}

}  // namespace mstar
