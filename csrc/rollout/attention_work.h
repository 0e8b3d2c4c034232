// Cuts a step's nodes into the items that the programs of a GPU take: once a step, for all layers.
//
// An item is a tile of rows below a node and a piece of the node's keys; each of its programs takes one of the kv heads.
// It leaves one partial result, in a slot, for each of its rows; merging adds up the slots of a row. Tiles are of two
// kinds: narrow ones hold the rows of a node that has few, wide ones those of all other nodes.
//
// Pieces. A node's keys are cut into pieces of about 1/programs of all the work (keys times kv heads, a tile at a time),
// never shorter than a quantum. So a few long nodes still fill the chip, and many nodes are not cut at all: a cut costs
// a partial result to write and read. Items stand in the order of their length, longest first, so that the last to end
// are short.
#pragma once

#include <cstdint>

namespace mstar {

struct AttentionNodes {
  std::int32_t count;
  const std::int32_t* row_begin;  // [count] rows below a node: [row_begin, row_end)
  const std::int32_t* row_end;
  const std::int32_t* table;      // [count] row of the block table
  const std::int32_t* length;     // [count] tokens
  const std::int32_t* start;      // [count] sequence index of the first token
  std::int32_t tables;            // rows of the block table
  std::int32_t max_length;        // tokens that one of its rows can list
};

struct AttentionTiling {
  std::int32_t kv_heads;
  std::int32_t narrow_rows, wide_rows;          // rows of a tile; a node with more than narrow_rows gets wide ones
  std::int32_t narrow_programs, wide_programs;  // programs of each kind that fill the chip
  std::int32_t quantum;                         // every piece but a node's last is a multiple of this many keys
};

// Where the plan is written. Nothing beyond the counts is touched.
struct AttentionWork {
  static constexpr int kFields = 8;  // node, row begin, row end, key begin, key end, first slot, table, start
  std::int32_t* counts;              // [3] wide items, narrow items, slots
  std::int32_t* items;               // [max_items, kFields], wide ones first
  std::int32_t* row_begin;           // [rows + 1] into slots: row r has slots[row_begin[r]] up to [row_begin[r + 1]]
  std::int32_t* slots;               // [max_slots]
  std::int32_t max_items, rows, max_slots;
};

// Linear in items and slots. Throws std::invalid_argument, before anything is written, when a node is out of range or
// the plan is larger than `work`.
void plan_attention_work(const AttentionNodes& nodes, const AttentionTiling& tiling, const AttentionWork& work);

}  // namespace mstar
