// The arithmetic of tree_attention, compiled once per instruction set. Two forms of the same sums:
//
// by lane  a vector holds 16 lanes, keys and values are broadcast: for full tiles (shared nodes);
// by key   a vector holds 16 keys (scores) or 16 elements of head_dim (values): for the few lanes of a leaf.
//
// Both do the same operations on a lane in the same order, so a choice between them, which depends on how many rows
// happen to be below a node, does not show in the result.
#include "cpu/convert.h"
#include "cpu/simd.h"
#include "cpu/tree_attention.h"

namespace mstar {
namespace MSTAR_ISA {
namespace {

using namespace attention;

constexpr int kLaneVecs = kLanes / kWidth;
constexpr int kKeyVecs = kKeys / kWidth;
constexpr int kFewLanes = 8;  // at most so many: by key
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kInfinity = __builtin_inff();

struct Tile {
  float* q;    // [head_dim, kLanes], scaled
  float* acc;  // by lane: [head_dim, kLanes]; by key: [kLanes, head_dim]
  int lanes;
  bool by_lane;
  std::int32_t first_seen[kLanes];  // sequence index of the first key inside the window
  std::int32_t least_first_seen, most_first_seen;
  alignas(64) float max[kLanes];
  alignas(64) float sum[kLanes];
};

// A run of keys of one sub-block.
struct Keys {
  const float* k[kKeys];  // [head_dim] each; past `count`: zeros
  const float* v[kKeys];
  int count;
  std::int32_t start;  // sequence index of the first
};

// cap_log2: the soft cap in units of log2, or 0 for none.
inline Vec logits(Vec s, float cap_log2) { return cap_log2 > 0 ? splat(cap_log2) * tanh(s) : s; }

// ---- by lane ----

template <int N>
inline void scores_of_keys(const float* const* k, const float* q, int head_dim, float* s) {
  Vec acc[N][kLaneVecs] = {};
  const float* key[N];
  for (int j = 0; j < N; ++j) key[j] = k[j];
  for (int d = 0; d < head_dim; ++d) {
    Vec lane[kLaneVecs];
    for (int i = 0; i < kLaneVecs; ++i) lane[i] = load(q + d * kLanes + i * kWidth);
    for (int j = 0; j < N; ++j) {
      const Vec x = splat(key[j][d]);
      for (int i = 0; i < kLaneVecs; ++i) acc[j][i] = fma(x, lane[i], acc[j][i]);
    }
  }
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < kLaneVecs; ++i) store(s + j * kLanes + i * kWidth, acc[j][i]);
}

template <int N>
inline void add_values(const Keys& keys, const float* p, const float* corrections, int d, float* acc_out) {
  Vec acc[N][kLaneVecs];
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < kLaneVecs; ++i)
      acc[j][i] = load(acc_out + (d + j) * kLanes + i * kWidth) * load(corrections + i * kWidth);
  for (int key = 0; key < keys.count; ++key) {
    const float* v = keys.v[key] + d;
    Vec weight[kLaneVecs];
    for (int i = 0; i < kLaneVecs; ++i) weight[i] = load(p + key * kLanes + i * kWidth);
    for (int j = 0; j < N; ++j) {
      const Vec x = splat(v[j]);
      for (int i = 0; i < kLaneVecs; ++i) acc[j][i] = fma(x, weight[i], acc[j][i]);
    }
  }
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < kLaneVecs; ++i) store(acc_out + (d + j) * kLanes + i * kWidth, acc[j][i]);
}

void attend_by_lane(Tile& t, const Keys& keys, bool masked, float cap_log2, int head_dim, float* s) {
  constexpr int kBlock = 8 / kLaneVecs;  // eight accumulators cover the latency of fma
  const int padded = (keys.count + kBlock - 1) / kBlock * kBlock;
  for (int j = 0; j < padded; j += kBlock) scores_of_keys<kBlock>(keys.k + j, t.q, head_dim, s + j * kLanes);
  for (int j = keys.count; j < kKeys; ++j)
    for (int i = 0; i < kLaneVecs; ++i) store(s + j * kLanes + i * kWidth, splat(-kInfinity));

  alignas(64) float corrections[kLanes];
  for (int i = 0; i < kLaneVecs; ++i) {
    float* const lane = s + i * kWidth;
    const Vec old_max = load(t.max + i * kWidth);
    const IntVec first_seen = load(t.first_seen + i * kWidth);
    Vec max_s = old_max;
    for (int j = 0; j < keys.count; ++j) {
      Vec x = logits(load(lane + j * kLanes), cap_log2);
      if (masked) x = first_seen <= keys.start + j ? x : splat(-kInfinity);
      store(lane + j * kLanes, x);
      max_s = max(max_s, x);
    }
    const Vec shift = max_s == splat(-kInfinity) ? Vec{} : max_s;
    Vec part[16];
    for (int j = 0; j < 16; ++j) {
      const Vec p0 = exp2(load(lane + j * kLanes) - shift);
      const Vec p1 = exp2(load(lane + (j + 16) * kLanes) - shift);
      store(lane + j * kLanes, p0);
      store(lane + (j + 16) * kLanes, p1);
      part[j] = p0 + p1;
    }
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) part[j] = part[j] + part[j + half];
    const Vec correction = exp2(old_max - shift);
    store(corrections + i * kWidth, correction);
    store(t.sum + i * kWidth, fma(load(t.sum + i * kWidth), correction, part[0]));
    store(t.max + i * kWidth, max_s);
  }

  int d = 0;
  for (; d + kBlock <= head_dim; d += kBlock) add_values<kBlock>(keys, s, corrections, d, t.acc);
  for (; d < head_dim; ++d) add_values<1>(keys, s, corrections, d, t.acc);
}

// ---- by key ----

// keys.k transposed: [head_dim, kKeys].
void transpose_keys(const Keys& keys, int head_dim, float* out) {
  for (int group = 0; group < kKeys; group += kWidth) {
    int d = 0;
    for (; d + kWidth <= head_dim; d += kWidth) {
      Vec square[kWidth];
#pragma GCC unroll 16
      for (int j = 0; j < kWidth; ++j) square[j] = load(keys.k[group + j] + d);
      transpose(square);
#pragma GCC unroll 16
      for (int j = 0; j < kWidth; ++j) store(out + (d + j) * kKeys + group, square[j]);
    }
    for (; d < head_dim; ++d)
      for (int j = 0; j < kWidth; ++j) out[d * kKeys + group + j] = keys.k[group + j][d];
  }
}

template <int N>
inline void scores_of_lanes(const float* keys, const float* q, int head_dim, float* s) {
  Vec acc[N][kKeyVecs] = {};
  for (int d = 0; d < head_dim; ++d) {
    Vec key[kKeyVecs];
    for (int i = 0; i < kKeyVecs; ++i) key[i] = load(keys + d * kKeys + i * kWidth);
    for (int j = 0; j < N; ++j) {
      const Vec x = splat(q[d * kLanes + j]);
      for (int i = 0; i < kKeyVecs; ++i) acc[j][i] = fma(key[i], x, acc[j][i]);
    }
  }
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < kKeyVecs; ++i) store(s + j * kKeys + i * kWidth, acc[j][i]);
}

template <int N>
inline void add_values_of_lane(const Keys& keys, const float* p, float correction, float* acc_out, int d) {
  Vec acc[N];
  for (int i = 0; i < N; ++i) acc[i] = load(acc_out + d + i * kWidth) * splat(correction);
  for (int key = 0; key < keys.count; ++key) {
    const Vec weight = splat(p[key]);
    const float* v = keys.v[key] + d;
    for (int i = 0; i < N; ++i) acc[i] = fma(load(v + i * kWidth), weight, acc[i]);
  }
  for (int i = 0; i < N; ++i) store(acc_out + d + i * kWidth, acc[i]);
}

void attend_by_key(Tile& t, const Keys& keys, const float* keys_t, bool masked, float cap_log2, int head_dim,
                   float* s) {
  constexpr int kGroup = kKeyVecs >= 8 ? 1 : 8 / kKeyVecs;
  int lane = 0;
  for (; lane + kGroup <= t.lanes; lane += kGroup) {
    scores_of_lanes<kGroup>(keys_t, t.q + lane, head_dim, s + lane * kKeys);
  }
  for (; lane < t.lanes; ++lane) scores_of_lanes<1>(keys_t, t.q + lane, head_dim, s + lane * kKeys);

  for (lane = 0; lane < t.lanes; ++lane) {
    float* const p = s + lane * kKeys;
    const float old_max = t.max[lane];
    Vec max_s = splat(old_max);
    IntVec index;
    for (int j = 0; j < kWidth; ++j) index[j] = j;
    for (int i = 0; i < kKeyVecs; ++i) {
      Vec x = logits(load(p + i * kWidth), cap_log2);
      const IntVec key = index + i * kWidth;
      if (keys.count < kKeys) x = key < keys.count ? x : splat(-kInfinity);
      if (masked) x = key + keys.start >= t.first_seen[lane] ? x : splat(-kInfinity);
      store(p + i * kWidth, x);
      max_s = max(max_s, x);
    }
    float new_max = max_s[0];
    for (int j = 1; j < kWidth; ++j) new_max = max_s[j] > new_max ? max_s[j] : new_max;
    const Vec shift = splat(new_max == -kInfinity ? 0.0f : new_max);
    for (int i = 0; i < kKeyVecs; ++i) store(p + i * kWidth, exp2(load(p + i * kWidth) - shift));
    float part[16];
    for (int j = 0; j < 16; ++j) part[j] = p[j] + p[j + 16];
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) part[j] = part[j] + part[j + half];
    const float correction = exp2(splat(old_max) - shift)[0];
    t.sum[lane] = fma(t.sum[lane], correction, part[0]);
    t.max[lane] = new_max;

    float* const acc = t.acc + lane * head_dim;
    int d = 0;
    for (; d + 8 * kWidth <= head_dim; d += 8 * kWidth) add_values_of_lane<8>(keys, p, correction, acc, d);
    for (; d + 4 * kWidth <= head_dim; d += 4 * kWidth) add_values_of_lane<4>(keys, p, correction, acc, d);
    for (; d + 2 * kWidth <= head_dim; d += 2 * kWidth) add_values_of_lane<2>(keys, p, correction, acc, d);
    for (; d + kWidth <= head_dim; d += kWidth) add_values_of_lane<1>(keys, p, correction, acc, d);
    for (; d < head_dim; ++d) {
      float x = acc[d] * correction;
      for (int key = 0; key < keys.count; ++key) x = fma(keys.v[key][d], p[key], x);
      acc[d] = x;
    }
  }
}

// ---- an item ----

struct Scratch {
  float *tiles, *k, *v, *keys_t, *zeros, *s;
  int padded;  // head_dim rounded up to whole vectors
};

Scratch carve(float* memory, int head_dim) {
  Scratch s;
  s.padded = (head_dim + 15) / 16 * 16;
  s.tiles = memory;
  s.k = s.tiles + 2 * kTilesPerItem * kLanes * s.padded;
  s.v = s.k + kKeys * s.padded;
  s.keys_t = s.v + kKeys * s.padded;
  s.zeros = s.keys_t + kKeys * s.padded;
  s.s = s.zeros + s.padded;
  return s;
}

void begin_tile(const TreeAttention& a, const Item& item, int lane_begin, const Scratch& scratch, Tile& t) {
  const int group = a.heads / a.kv_heads;
  t.lanes = item.lane_end - lane_begin < kLanes ? item.lane_end - lane_begin : kLanes;
  t.by_lane = t.lanes > kFewLanes;
  const int tile = (lane_begin - item.lane_begin) / kLanes;
  t.q = scratch.tiles + 2 * tile * kLanes * scratch.padded;
  t.acc = t.q + kLanes * scratch.padded;
  if (t.by_lane) std::memset(t.q, 0, kLanes * scratch.padded * sizeof(float));
  std::memset(t.acc, 0, (t.by_lane ? kLanes : t.lanes) * a.head_dim * sizeof(float));
  const float factor = a.softcap > 0 ? a.scale / a.softcap : a.scale * kLog2e;
  t.least_first_seen = INT32_MAX;
  t.most_first_seen = INT32_MIN;
  for (int i = 0; i < kLanes; ++i) {
    t.max[i] = -kInfinity;
    t.sum[i] = 0;
    t.first_seen[i] = INT32_MIN;
    if (i >= t.lanes) continue;
    const int row = a.row_begin[item.node] + (lane_begin + i) / group;
    const int head = item.kv_head * group + (lane_begin + i) % group;
    if (a.window > 0) t.first_seen[i] = a.positions[row] - a.window + 1;
    if (t.first_seen[i] < t.least_first_seen) t.least_first_seen = t.first_seen[i];
    if (t.first_seen[i] > t.most_first_seen) t.most_first_seen = t.first_seen[i];
    float* const q = scratch.k;  // not yet in use
    to_float(a.q, a.q_dtype, (static_cast<std::int64_t>(row) * a.heads + head) * a.head_dim, a.head_dim, q);
    for (int d = 0; d < a.head_dim; ++d) t.q[d * kLanes + i] = q[d] * factor;
  }
}

void end_tile(const TreeAttention& a, const Item& item, int lane_begin, const Tile& t, const Partials& partials) {
  const int group = a.heads / a.kv_heads;
  for (int i = 0; i < t.lanes; ++i) {
    const int row = (lane_begin + i) / group;
    const int head = item.kv_head * group + (lane_begin + i) % group;
    const std::int64_t index = item.partial + static_cast<std::int64_t>(row) * a.heads + head;
    partials.max[index] = t.max[i];
    partials.sum[index] = t.sum[i];
    if (t.max[i] == -kInfinity) continue;
    float* const acc = partials.acc + index * a.head_dim;
    if (t.by_lane) {
      for (int d = 0; d < a.head_dim; ++d) acc[d] = t.acc[d * kLanes + i];
    } else {
      std::memcpy(acc, t.acc + i * a.head_dim, a.head_dim * sizeof(float));
    }
  }
}

// Points at the keys [first, first + keys.count) of a node, converted to float32 where they are not.
void find_keys(const TreeAttention& a, const Item& item, int first, const Scratch& scratch, Keys& keys) {
  const std::int32_t* blocks = a.block_table + a.table[item.node] * a.blocks_per_table;
  const bool convert = a.kv_dtype != Dtype::float32;
  for (int j = 0; j < keys.count;) {
    const int offset = (first + j) % a.block_size;
    const int left = a.block_size - offset;
    const int run = keys.count - j < left ? keys.count - j : left;
    const std::int64_t head = static_cast<std::int64_t>(blocks[(first + j) / a.block_size]) * a.kv_heads + item.kv_head;
    const std::int64_t element = (head * a.block_size + offset) * a.head_dim;
    const float* k = static_cast<const float*>(a.k_cache) + element;
    const float* v = static_cast<const float*>(a.v_cache) + element;
    if (convert) {
      k = scratch.k + j * a.head_dim;
      v = scratch.v + j * a.head_dim;
      to_float(a.k_cache, a.kv_dtype, element, run * a.head_dim, scratch.k + j * a.head_dim);
      to_float(a.v_cache, a.kv_dtype, element, run * a.head_dim, scratch.v + j * a.head_dim);
    }
    // Scores take a while; the values are on their way meanwhile.
    if (!convert) for (int i = 0; i < run * a.head_dim; i += 16) __builtin_prefetch(v + i);
    for (int i = 0; i < run; ++i, ++j) {
      keys.k[j] = k + i * a.head_dim;
      keys.v[j] = v + i * a.head_dim;
    }
  }
  for (int j = keys.count; j < kKeys; ++j) keys.k[j] = scratch.zeros;
}

void attend(const TreeAttention& a, const Item& item, const Partials& partials, float* memory) {
  const Scratch scratch = carve(memory, a.head_dim);
  const float cap_log2 = a.softcap > 0 ? a.softcap * kLog2e : 0.0f;
  std::memset(scratch.zeros, 0, scratch.padded * sizeof(float));

  Tile tiles[kTilesPerItem];
  int count = 0;
  for (int lane = item.lane_begin; lane < item.lane_end; lane += kLanes) {
    begin_tile(a, item, lane, scratch, tiles[count++]);
  }
  const int chunk_end = (item.chunk + 1) * kChunk;
  const int end = a.length[item.node] < chunk_end ? a.length[item.node] : chunk_end;
  for (int first = item.chunk * kChunk; first < end; first += kKeys) {
    Keys keys;
    keys.count = end - first < kKeys ? end - first : kKeys;
    keys.start = a.start[item.node] + first;
    bool found = false, transposed = false;
    for (int i = 0; i < count; ++i) {
      Tile& t = tiles[i];
      if (t.least_first_seen >= keys.start + keys.count) continue;  // outside the window of every lane
      if (!found) find_keys(a, item, first, scratch, keys);
      found = true;
      const bool masked = t.most_first_seen > keys.start;
      if (t.by_lane) {
        attend_by_lane(t, keys, masked, cap_log2, a.head_dim, scratch.s);
      } else {
        if (!transposed) transpose_keys(keys, a.head_dim, scratch.keys_t);
        transposed = true;
        attend_by_key(t, keys, scratch.keys_t, masked, cap_log2, a.head_dim, scratch.s);
      }
    }
  }
  for (int i = 0; i < count; ++i) end_tile(a, item, item.lane_begin + i * kLanes, tiles[i], partials);
}

void merge(const TreeAttention& a, int row, const RowPartials& row_partials, const Partials& partials) {
  constexpr int kSlice = 64;  // of head_dim: on the stack
  for (int head = 0; head < a.heads; ++head) {
    float max_s = -kInfinity;
    for (int i = 0; i < row_partials.count; ++i) {
      const float m = partials.max[row_partials.index[i] + head];
      if (m > max_s) max_s = m;
    }
    for (int d = 0; d < a.head_dim; d += kSlice) {
      const int n = a.head_dim - d < kSlice ? a.head_dim - d : kSlice;
      float acc[kSlice] = {};
      float sum = 0;
      for (int i = 0; i < row_partials.count; ++i) {
        const std::int64_t index = row_partials.index[i] + head;
        const float m = partials.max[index];
        if (m == -kInfinity) continue;
        const float weight = exp2(splat(m - max_s))[0];
        sum = fma(partials.sum[index], weight, sum);
        const float* const part = partials.acc + index * a.head_dim + d;
        for (int j = 0; j < n; ++j) acc[j] = fma(part[j], weight, acc[j]);
      }
      const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
      for (int j = 0; j < n; ++j) acc[j] *= inverse;
      from_float(acc, a.q_dtype, (static_cast<std::int64_t>(row) * a.heads + head) * a.head_dim + d, n, a.out);
    }
  }
}

}  // namespace

extern const Kernel tree_attention_kernel = {attend, merge};

}  // namespace MSTAR_ISA
}  // namespace mstar
