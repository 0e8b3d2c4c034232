// Moves of K and V in the paged cache, [blocks, kv_heads, block_size, head_dim]. Copies only, so of any element type:
// `element_size` bytes each. Everything in range: the caller has checked.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mstar {

struct PagedKv {
  void* k_cache;
  void* v_cache;
  int kv_heads, block_size, head_dim;
  std::size_t element_size;
};

// k, v: [tokens, kv_heads, head_dim]. Token i goes to slot slots[i] = block * block_size + offset; slots are distinct.
// A token with a slot below 0 is not stored.
void store_kv(const PagedKv& cache, const void* k, const void* v, const std::int32_t* slots, std::int64_t tokens);

// Block dst[i] becomes block src[i]. Destinations are distinct and none is a source.
void copy_blocks(const PagedKv& cache, const std::int32_t* src, const std::int32_t* dst, std::int64_t copies);

}  // namespace mstar
