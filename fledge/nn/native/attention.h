// Attention of tokens to the cache: scores, softmax and weighted values of a head of up to eight neighbouring tokens.
//
// A layer's values: [K heads][positions][C channels]; its keys, block after block with a block's tokens side by side:
// [K heads][positions / BLOCK][C][BLOCK]. Both float32, or int8 with a scale for each head and position. A sequence's
// token p stands at position table[p / BLOCK] · BLOCK + p % BLOCK. A score is summed over channels in rising order, each
// of a block's keys in a lane of its own, a value over keys in rising order: the same bits whatever else is computed.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace fledge {

constexpr int BLOCK = LANES;  // tokens of a cache block

struct Cache {
  void *keys, *values;
  float *key_scales, *value_scales;  // null: float32
  int64_t positions;
};

struct Heads {
  int32_t n_heads, n_kv_heads, channels, window;  // window 0: all of the past
  float scale, softcap;                           // softcap 0: none
  const float* slopes;                            // ALiBi, [n_heads]; null: none
};

static inline int64_t place(const int32_t* table, int position) {
  return (int64_t)table[position / BLOCK] * BLOCK + position % BLOCK;
}

static inline Floats load_bytes(const int8_t* from, int n) {
  if (n >= LANES) return widened(from);
  int8_t part[LANES] = {};
  std::memcpy(part, from, n);
  return widened(part);
}

// Sixteen numbers of the cache from element `at` on.
template <bool BYTES>
static inline Floats sixteen(const void* from, int64_t at) {
  return BYTES ? load_bytes((const int8_t*)from + at, LANES) : load((const float*)from + at);
}

// Channels `c`.. of row `row` of the cache's values, `n` of them at most.
template <bool BYTES>
static inline Floats cached(const void* from, int64_t row, int C, int c) {
  if (BYTES) return load_bytes((const int8_t*)from + row * C + c, C - c);
  return load_part((const float*)from + row * C + c, C - c);
}

// Rounds a head's channels to int8, `stride` apart: the largest becomes 127.
static inline void write_bytes(const float* x, int n, int8_t* to, int stride, float* scale) {
  float size = 0;
  for (int c = 0; c < n; c++) size = std::max(size, std::fabs(x[c]));
  *scale = size / 127.0f;
  for (int c = 0; c < n; c++) to[c * stride] = size > 0 ? (int8_t)std::lrint(x[c] / *scale) : 0;
}

static inline void write_cache(const Cache& cache, const Heads& heads, int64_t at, const float* k, const float* v) {
  const int C = heads.channels;
  for (int h = 0; h < heads.n_kv_heads; h++) {
    const int64_t row = h * cache.positions + at, key = (row - at % BLOCK) * C + at % BLOCK;
    if (cache.key_scales) {
      write_bytes(k + h * C, C, (int8_t*)cache.keys + key, BLOCK, cache.key_scales + row);
      write_bytes(v + h * C, C, (int8_t*)cache.values + row * C, 1, cache.value_scales + row);
    } else {
      float* to = (float*)cache.keys + key;
      for (int c = 0; c < C; c++) to[c * BLOCK] = k[h * C + c];
      std::memcpy((float*)cache.values + row * C, v + h * C, C * sizeof(float));
    }
  }
}

// Queries that are attended to together where they are neighbours in one sequence, and how much of their work is under
// way at once, so that all sums are in registers: blocks of keys for Q queries' scores; queries, and sixteens of channels
// for Q of them, for values.
#if defined(FLEDGE_AVX2)
constexpr int QUERIES = 4;
constexpr int blocks_together(int Q) { return 4 / Q; }
constexpr int values_together(int Q) { return Q < 2 ? Q : 2; }
constexpr int parts_together(int Q) { return Q == 1 ? 4 : 3; }
#else
constexpr int QUERIES = 8;
constexpr int blocks_together(int Q) { return Q == 1 ? 8 : Q == 8 ? 2 : 4; }
constexpr int values_together(int Q) { return Q; }
constexpr int parts_together(int Q) { return Q == 8 ? 3 : 4; }
#endif

// Scores of Q queries [C] with B blocks of keys, which begin at the positions `rows`: to scores[j] + at.
template <bool BYTES, int Q, int B>
static inline void score_blocks(const float* const (&q)[Q], const Cache& cache, const int64_t* rows, int C, float scale,
                                float* const (&scores)[Q], int at) {
  Floats dots[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) dots[j][b] = all(0.0f);
  for (int c = 0; c < C; c++) {
    Floats keys[B];
    for (int b = 0; b < B; b++) keys[b] = sixteen<BYTES>(cache.keys, rows[b] * C + c * BLOCK);
    for (int j = 0; j < Q; j++) {
      const Floats channel = all(q[j][c]);
      for (int b = 0; b < B; b++) dots[j][b] = fma(channel, keys[b], dots[j][b]);
    }
  }
  for (int b = 0; b < B; b++) {
    const Floats factor = BYTES ? load(cache.key_scales + rows[b]) * all(scale) : all(scale);
    for (int j = 0; j < Q; j++) store(scores[j] + at + b * BLOCK, dots[j][b] * factor);
  }
}

// Scores of Q queries with the `n` keys of whole blocks, the last of which may be cut: scores[j][i], room for 16 more.
template <bool BYTES, int Q, int B = blocks_together(Q)>
static void score(const float* const (&q)[Q], const Cache& cache, int64_t base, const int32_t* blocks, int n, int C,
                  float scale, float* const (&scores)[Q], int from = 0) {
  int i = from;
  for (; i + (B - 1) * BLOCK < n; i += B * BLOCK) {
    int64_t rows[B];
    for (int b = 0; b < B; b++) rows[b] = base + (int64_t)blocks[i / BLOCK + b] * BLOCK;
    score_blocks<BYTES, Q, B>(q, cache, rows, C, scale, scores, i);
  }
  if constexpr (B > 1) score<BYTES, Q, B / 2>(q, cache, base, blocks, n, C, scale, scores, i);
}

// Adds weight · value of the keys i … end, which lie side by side from position `row` on, to the sums of Q queries:
// PARTS sixteens of channels from `c` on, the last of which is cut where they are not WHOLE.
template <bool BYTES, bool WHOLE, int Q, int PARTS>
static void value_tile(float* const (&weights)[Q], const Cache& cache, int64_t row, int i, int end, int C, int c,
                       Floats (&sums)[Q][PARTS]) {
  Floats acc[Q][PARTS];  // in registers: the caller's would be written after every key
  std::memcpy(acc, sums, sizeof acc);
  for (; i < end; i++, row++) {
    Floats value[PARTS];
    for (int p = 0; p < PARTS; p++)
      value[p] = WHOLE ? sixteen<BYTES>(cache.values, row * C + c + p * LANES) : cached<BYTES>(cache.values, row, C, c);
    for (int j = 0; j < Q; j++) {
      const Floats weight = all(BYTES ? weights[j][i] * cache.value_scales[row] : weights[j][i]);
      for (int p = 0; p < PARTS; p++) acc[j][p] = fma(weight, value[p], acc[j][p]);
    }
  }
  std::memcpy(sums, acc, sizeof acc);
}

// Σ share · weight · value over `n` keys for Q queries, channels as above.
template <bool BYTES, bool WHOLE, int Q, int PARTS>
static void mix(float* const (&weights)[Q], const Cache& cache, int64_t base, const int32_t* table, int first, int n,
                int C, int c, const float (&share)[Q], float* const (&out)[Q]) {
  Floats sums[Q][PARTS];
  for (int j = 0; j < Q; j++)
    for (int p = 0; p < PARTS; p++) sums[j][p] = all(0.0f);
  for (int i = 0; i < n;) {
    const int64_t row = place(table, first + i);
    int end = i + BLOCK - (first + i) % BLOCK;
    while (end < n && place(table, first + end) == row + end - i) end += BLOCK;
    end = std::min(n, end);
    value_tile<BYTES, WHOLE>(weights, cache, base + row, i, end, C, c, sums);
    i = end;
  }
  for (int j = 0; j < Q; j++)
    for (int p = 0; p < PARTS; p++)
      store_part(out[j] + c + p * LANES, sums[j][p] * all(share[j]), C - c - p * LANES);
}

// Weights before they are divided by their sum, in place of scores [n, room for 16 more]; gives that sum.
static float soften(float* scores, int n, float softcap) {
  Floats most = all(-INFINITY);
  for (int i = 0; i < n; i += LANES) {
    Floats s = load_part(scores + i, n - i);
    if (softcap > 0) s = tanh(s / all(softcap)) * all(softcap);
    s = first_lanes(s, n - i, -INFINITY);
    store(scores + i, s);
    most = max(most, s);
  }
  const Floats peak = all(largest(most));
  Floats total{};
  for (int i = 0; i < n; i += LANES) {
    const Floats p = first_lanes(exp(load(scores + i) - peak), n - i, 0.0f);
    store(scores + i, p);
    total = total + p;
  }
  return sum(total);
}

// The same of all channels, as many of them together as registers hold.
template <bool BYTES, int Q>
static void mix_all(float* const (&weights)[Q], const Cache& cache, int64_t base, const int32_t* table, int first, int n,
                    int C, const float (&share)[Q], float* const (&out)[Q]) {
  constexpr int MOST = parts_together(Q);
  const int sixteens = C / LANES, times = (sixteens + MOST - 1) / MOST;
  const int parts = times ? (sixteens + times - 1) / times : 1;  // as even as that many times allow
  for (int done = 0; done < sixteens; done += parts) {
    const int c = done * LANES;
    switch (std::min(parts, sixteens - done)) {
      case 1: mix<BYTES, true, Q, 1>(weights, cache, base, table, first, n, C, c, share, out); break;
      case 2: mix<BYTES, true, Q, 2>(weights, cache, base, table, first, n, C, c, share, out); break;
      case 3: mix<BYTES, true, Q, 3>(weights, cache, base, table, first, n, C, c, share, out); break;
      default: mix<BYTES, true, Q, MOST>(weights, cache, base, table, first, n, C, c, share, out);
    }
  }
  if (C % LANES) mix<BYTES, false, Q, 1>(weights, cache, base, table, first, n, C, sixteens * LANES, share, out);
}

// A head of Q neighbouring tokens, the first at `position`, each against its own past: out[j] [C].
template <bool BYTES, int Q>
static void attend(const float* const (&q)[Q], const Cache& cache, const Heads& heads, int head, const int32_t* table,
                   int position, float* const (&scores)[Q], float* const (&out)[Q]) {
  constexpr int V = values_together(Q);
  const int C = heads.channels, last = position + Q - 1;
  const int64_t base = (int64_t)(head / (heads.n_heads / heads.n_kv_heads)) * cache.positions;
  const auto begins = [&](int j) { return heads.window ? std::max(0, position + j + 1 - heads.window) : 0; };
  const int first = begins(0), block = first / BLOCK, skipped = first % BLOCK, n = last + 1 - first;
  score<BYTES, Q>(q, cache, base, table + block, skipped + n, C, heads.scale, scores);
  for (int j = 0; j < Q; j += V) {
    float *weights[V], *outputs[V], share[V];
    for (int v = 0; v < V; v++) {
      const int before = begins(j + v) - first, own = position + j + v + 1 - begins(j + v);
      weights[v] = scores[j + v] + skipped, outputs[v] = out[j + v];
      float* mine = weights[v] + before;
      if (heads.slopes)
        for (int i = 0; i < own; i++) mine[i] += heads.slopes[head] * (float)(i + 1 - own);
      share[v] = 1.0f / soften(mine, own, heads.softcap);
      for (int i = 0; i < before; i++) weights[v][i] = 0.0f;  // keys that others of these queries see
      for (int i = own; i < n - before; i++) mine[i] = 0.0f;
    }
    mix_all<BYTES, V>(weights, cache, base, table, first, n, C, share, outputs);
  }
}

// Floats that a query's scores take.
static inline int64_t score_room(int n_keys) { return round_up(n_keys, LANES) + 2 * LANES; }

// Q neighbouring tokens: queries and outputs lie `q_stride` and `out_stride` apart. `room`: the thread's, for as many
// queries' scores.
template <int Q>
static void attend_together(const float* q, int64_t q_stride, const Cache& cache, const Heads& heads, int head,
                            const int32_t* table, int position, std::vector<float>& room, float* out,
                            int64_t out_stride) {
  const int64_t each = score_room(position + Q);
  const float* queries[Q];
  float *scores[Q], *outputs[Q];
  for (int j = 0; j < Q; j++)
    queries[j] = q + j * q_stride, scores[j] = room.data() + j * each, outputs[j] = out + j * out_stride;
  if (cache.key_scales)
    attend<true, Q>(queries, cache, heads, head, table, position, scores, outputs);
  else
    attend<false, Q>(queries, cache, heads, head, table, position, scores, outputs);
}

// `n` <= Q neighbouring tokens: as many as a power of two together, then half as many, …
template <int Q = QUERIES>
static void attend_neighbours(int n, const float* q, int64_t q_stride, const Cache& cache, const Heads& heads, int head,
                              const int32_t* table, int position, std::vector<float>& room, float* out,
                              int64_t out_stride) {
  if (n >= Q) {
    attend_together<Q>(q, q_stride, cache, heads, head, table, position, room, out, out_stride);
    n -= Q, q += Q * q_stride, out += Q * out_stride, position += Q;
  }
  if constexpr (Q > 1)
    if (n) attend_neighbours<Q / 2>(n, q, q_stride, cache, heads, head, table, position, room, out, out_stride);
}

}  // namespace fledge
