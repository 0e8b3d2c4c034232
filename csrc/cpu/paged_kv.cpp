#include "cpu/paged_kv.h"

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"

namespace mstar {

void store_kv(const PagedKv& cache, const void* k, const void* v, const std::int32_t* slots, std::int64_t tokens) {
  constexpr std::int64_t kTokensPerTask = 64;
  const std::size_t vector = cache.head_dim * cache.element_size;
  parallel_for((tokens + kTokensPerTask - 1) / kTokensPerTask, [&](std::int64_t task) {
    const std::int64_t end = std::min(tokens, (task + 1) * kTokensPerTask);
    for (std::int64_t token = task * kTokensPerTask; token < end; ++token) {
      if (slots[token] < 0) continue;
      const std::int64_t block = slots[token] / cache.block_size;
      const std::int64_t offset = slots[token] % cache.block_size;
      for (int head = 0; head < cache.kv_heads; ++head) {
        const std::size_t from = (token * cache.kv_heads + head) * vector;
        const std::size_t to = ((block * cache.kv_heads + head) * cache.block_size + offset) * vector;
        std::memcpy(static_cast<char*>(cache.k_cache) + to, static_cast<const char*>(k) + from, vector);
        std::memcpy(static_cast<char*>(cache.v_cache) + to, static_cast<const char*>(v) + from, vector);
      }
    }
  });
}

void copy_blocks(const PagedKv& cache, const std::int32_t* src, const std::int32_t* dst, std::int64_t copies) {
  const std::size_t block = cache.element_size * cache.kv_heads * cache.block_size * cache.head_dim;
  parallel_for(copies, [&](std::int64_t i) {
    for (void* base : {cache.k_cache, cache.v_cache}) {
      char* const bytes = static_cast<char*>(base);
      std::memcpy(bytes + dst[i] * block, bytes + src[i] * block, block);
    }
  });
}

}  // namespace mstar
