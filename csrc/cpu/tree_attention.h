// Decode attention over the prefix tree: every row (live sequence) attends to the tokens of every node above it.
//
// The floor. Bytes: the tree's K and V once, sum over nodes of length * kv_heads * head_dim * 2 * element size; a row's
// own reading of its whole prefix (what attention without a tree does) is larger by the mean number of rows below
// a node. FLOPs: sum over nodes of 4 * length * rows below * heads * head_dim. Below about 16 lanes (rows times the
// query heads of one kv head) a node is bound by bytes, above by FLOPs.
//
// How. Pass 1: an item is (node, chunk of at most kChunk keys, kv head, up to kTilesPerItem tiles of 16 lanes); it
// walks its keys in sub-blocks of kKeys with an online softmax per lane in fp32 and leaves a partial (m, l, acc).
// Pass 2 merges the partials of a row by log-sum-exp, in the order of the sequence.
//
// Order of arithmetic. A lane's dot products run over head_dim in order, its values over keys in order, in chunks and
// sub-blocks counted from the node's first token; nothing else enters. So a row's result is the same, bit for bit, for
// any thread count and whatever other rows are in the batch, as long as its own nodes are cut the same way.
#pragma once

#include <cstdint>

#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace mstar {

struct TreeAttention {
  const void* q;        // [rows, heads, head_dim]
  const void* k_cache;  // [blocks, kv_heads, block_size, head_dim]
  const void* v_cache;
  void* out;            // [rows, heads, head_dim], of q's dtype
  Dtype q_dtype, kv_dtype;
  int rows, heads, kv_heads, head_dim, block_size;

  int nodes;
  const std::int32_t* row_begin;  // [nodes] rows below a node: [row_begin, row_end)
  const std::int32_t* row_end;
  const std::int32_t* table;      // [nodes] row of block_table
  const std::int32_t* length;     // [nodes] tokens
  const std::int32_t* start;      // [nodes] sequence index of the first token
  const std::int32_t* block_table;
  std::int64_t blocks_per_table;
  const std::int32_t* positions;  // [rows] sequence index of the query's token

  float scale;
  int window;     // keys at sequence index > position - window are seen; 0: all
  float softcap;  // s = softcap * tanh(s / softcap); 0: none
};

// Everything in range: the caller has checked. A row with no visible key gets zeros.
// `isa` may be narrower than active_isa(), for tests; a wider one throws std::invalid_argument.
void tree_attention(const TreeAttention& a, Isa isa);

// The border between tree_attention.cpp and tree_attention_kernel.cpp (one table per ISA).
namespace attention {

constexpr int kLanes = 16;         // lanes of a tile: (row, query head) pairs of one kv head
constexpr int kKeys = 32;          // keys of a sub-block
constexpr int kChunk = 512;        // keys of an item; fixed, so that results do not depend on the batch
constexpr int kTilesPerItem = 4;

struct Item {
  int node, chunk, kv_head;
  int lane_begin, lane_end;   // of (row_end - row_begin) * heads / kv_heads
  std::int64_t partial;       // of the node's first row and head in this chunk
};

// [partials], [partials], [partials, head_dim]. max is in units of log2 and -infinity where no key was visible (then
// acc is not written). A partial's index is Item::partial + (row - row_begin) * heads + head.
struct Partials {
  float* max;
  float* sum;
  float* acc;
};

struct RowPartials {
  const std::int64_t* index;  // first head's partial, one entry per (node, chunk) in the order of the sequence
  int count;
};

struct Kernel {
  void (*attend)(const TreeAttention&, const Item&, const Partials&, float* scratch);
  void (*merge)(const TreeAttention&, int row, const RowPartials&, const Partials&);
};

// Floats that attend() needs; 64-byte aligned.
std::int64_t scratch_size(int head_dim);

}  // namespace attention

namespace portable { extern const attention::Kernel tree_attention_kernel; }
namespace avx2 { extern const attention::Kernel tree_attention_kernel; }
namespace avx512 { extern const attention::Kernel tree_attention_kernel; }

}  // namespace mstar
