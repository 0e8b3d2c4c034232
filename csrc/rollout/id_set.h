// A set of small integers which answers "the lowest one" in a few instructions: a bitmap with summary levels above.
// Handing out the lowest free id, not the latest freed, makes every plan a function of what is held and not of the
// order in which things were given back. So a rolled-back step is planned again with the same blocks.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace mstar {

class IdSet {
 public:
  // The full set {0, ..., capacity - 1}.
  explicit IdSet(std::int32_t capacity) : capacity_(capacity) {
    std::size_t words = static_cast<std::size_t>(capacity);
    do {
      words = (words + 63) / 64;
      levels_.emplace_back(words, 0);
    } while (words > 1);
    for (std::int32_t id = 0; id < capacity; ++id) insert(id);
  }

  std::int32_t size() const { return size_; }
  std::int32_t capacity() const { return capacity_; }
  bool contains(std::int32_t id) const { return levels_[0][id >> 6] >> (id & 63) & 1; }

  void insert(std::int32_t id) {
    ++size_;
    for (auto& level : levels_) {
      std::uint64_t& word = level[id >> 6];
      const bool was_empty = word == 0;
      word |= std::uint64_t{1} << (id & 63);
      if (!was_empty) return;
      id >>= 6;
    }
  }

  void erase(std::int32_t id) {
    --size_;
    for (auto& level : levels_) {
      std::uint64_t& word = level[id >> 6];
      word &= ~(std::uint64_t{1} << (id & 63));
      if (word != 0) return;
      id >>= 6;
    }
  }

  // Removes and returns the lowest id. The set must not be empty.
  std::int32_t take_lowest() {
    std::int32_t id = 0;
    for (std::size_t i = levels_.size(); i-- > 0;) id = id * 64 + std::countr_zero(levels_[i][id]);
    erase(id);
    return id;
  }

 private:
  std::vector<std::vector<std::uint64_t>> levels_;  // bit i of a level: word i of the level below is not zero
  std::int32_t capacity_;
  std::int32_t size_ = 0;
};

}  // namespace mstar
