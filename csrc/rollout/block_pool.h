// The blocks of the K/V cache, reference-counted. A block is free exactly when nobody refers to it; references are
// objects, so a block cannot be forgotten or given back twice.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "rollout/id_set.h"

namespace mstar {

class BlockPool;

// One reference to one block. Moving keeps the count; share() adds to it; the destructor gives back.
class BlockRef {
 public:
  BlockRef() = default;
  BlockRef(BlockRef&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), id_(other.id_) {}
  BlockRef& operator=(BlockRef&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(id_, other.id_);
    return *this;
  }
  BlockRef(const BlockRef&) = delete;
  BlockRef& operator=(const BlockRef&) = delete;
  ~BlockRef();

  std::int32_t id() const { return id_; }
  bool shared() const;
  BlockRef share() const;

 private:
  friend class BlockPool;
  BlockRef(BlockPool* pool, std::int32_t id) : pool_(pool), id_(id) {}

  BlockPool* pool_ = nullptr;
  std::int32_t id_ = -1;
};

class BlockPool {
 public:
  explicit BlockPool(std::int32_t num_blocks);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // The lowest free block. Throws std::logic_error when there is none: planning counts before it takes.
  BlockRef acquire();
  // A reference to this very block, free or not: undoes a release.
  BlockRef adopt(std::int32_t block);

  std::int32_t size() const { return free_.capacity(); }
  std::int32_t free_count() const { return free_.size(); }
  std::int32_t refs(std::int32_t block) const { return refs_[block]; }
  bool is_free(std::int32_t block) const { return free_.contains(block); }

 private:
  friend class BlockRef;
  void release(std::int32_t block) {
    if (--refs_[block] == 0) free_.insert(block);
  }

  IdSet free_;
  std::vector<std::int32_t> refs_;
};

inline BlockRef::~BlockRef() {
  if (pool_ != nullptr) pool_->release(id_);
}
inline bool BlockRef::shared() const { return pool_->refs(id_) > 1; }
inline BlockRef BlockRef::share() const { return pool_->adopt(id_); }

}  // namespace mstar
