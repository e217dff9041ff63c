// Attention of tokens to the cache: scores, softmax and weighted values of a head of up to four neighbouring tokens.
//
// Keys and values of a layer: [K heads][positions][C channels], float32, or int8 with a scale for each head and position.
// A sequence's token p stands at position table[p / BLOCK] · BLOCK + p % BLOCK. A score is summed over 16 lanes of
// channels and then as a tree, a value over keys in rising order: the same bits whatever else is computed.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

namespace fledge {

constexpr int BLOCK = 16;  // tokens of a cache block

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

// Sixteen channels of the cache from element `at` on.
template <bool BYTES>
static inline Floats sixteen(const void* from, int64_t at) {
  return BYTES ? load_bytes((const int8_t*)from + at, LANES) : load((const float*)from + at);
}

// Channels `c`.. of row `row` of the cache, `n` of them at most.
template <bool BYTES>
static inline Floats cached(const void* from, int64_t row, int C, int c) {
  if (BYTES) return load_bytes((const int8_t*)from + row * C + c, C - c);
  return load_part((const float*)from + row * C + c, C - c);
}

// Rounds a head's channels to int8: the largest becomes 127.
static inline void write_bytes(const float* x, int n, int8_t* to, float* scale) {
  float size = 0;
  for (int c = 0; c < n; c++) size = std::max(size, std::fabs(x[c]));
  *scale = size / 127.0f;
  for (int c = 0; c < n; c++) to[c] = size > 0 ? (int8_t)std::lrint(x[c] / *scale) : 0;
}

static inline void write_cache(const Cache& cache, const Heads& heads, int64_t at, const float* k, const float* v) {
  const int C = heads.channels;
  for (int h = 0; h < heads.n_kv_heads; h++) {
    const int64_t row = h * cache.positions + at;
    if (cache.key_scales) {
      write_bytes(k + h * C, C, (int8_t*)cache.keys + row * C, cache.key_scales + row);
      write_bytes(v + h * C, C, (int8_t*)cache.values + row * C, cache.value_scales + row);
    } else {
      std::memcpy((float*)cache.keys + row * C, k + h * C, C * sizeof(float));
      std::memcpy((float*)cache.values + row * C, v + h * C, C * sizeof(float));
    }
  }
}

// How much goes together, so that all sums are in registers: keys and queries of scores, sixteens of channels of values.
#if defined(FLEDGE_AVX2)
constexpr int keys_together(int Q) { return Q == 1 ? 4 : 2; }
constexpr int queries_together(int Q) { return Q < 2 ? Q : 2; }
constexpr int parts_together(int Q) { return Q == 1 ? 4 : 3; }
#else
constexpr int keys_together(int Q) { return LANES / Q; }
constexpr int queries_together(int Q) { return Q; }
constexpr int parts_together(int) { return 4; }
#endif

// Adds the products of N queries and M keys, whose channels begin at `rows`, over all channels to dots[j · stride + k].
template <bool BYTES, int N, int M>
static inline __attribute__((always_inline)) void dot_block(const float* const* q, const void* keys,
                                                            const int64_t* rows, int C, int stride, Floats* dots) {
  Floats acc[N][M];
  for (int j = 0; j < N; j++)
    for (int k = 0; k < M; k++) acc[j][k] = all(0.0f);
  int c = 0;
  for (; c + LANES <= C; c += LANES)
    for (int k = 0; k < M; k++) {
      const Floats key = sixteen<BYTES>(keys, rows[k] * C + c);
      for (int j = 0; j < N; j++) acc[j][k] = fma(load(q[j] + c), key, acc[j][k]);
    }
  if (c < C)
    for (int k = 0; k < M; k++) {
      const Floats key = cached<BYTES>(keys, rows[k], C, c);
      for (int j = 0; j < N; j++) acc[j][k] = fma(load_part(q[j] + c, C - c), key, acc[j][k]);
    }
  for (int j = 0; j < N; j++)
    for (int k = 0; k < M; k++) dots[j * stride + k] = acc[j][k];
}

// Scores of Q queries [C] with `n` keys from position `first` on: scores[j][i], room for 16 more. Sixteen at a time.
template <bool BYTES, int Q>
static void score(const float* const (&q)[Q], const Cache& cache, int64_t base, const int32_t* table, int first, int n,
                  int C, float scale, float* const (&scores)[Q]) {
  constexpr int KEYS = LANES / Q;
  for (int i = 0; i < n; i += KEYS) {
    constexpr int N = queries_together(Q), M = std::min(keys_together(Q), KEYS);
    Floats dots[LANES];
    if constexpr (Q * KEYS < LANES) dots[LANES - 1] = all(0.0f);  // three queries leave one over
    int64_t rows[KEYS];
    for (int k = 0; k < KEYS; k++) rows[k] = base + place(table, first + std::min(i + k, n - 1));
    for (int j = 0; j < Q; j += N)
      for (int k = 0; k < KEYS; k += M) {
        if (Q - j >= N && KEYS - k >= M) {
          dot_block<BYTES, N, M>(q + j, cache.keys, rows + k, C, KEYS, dots + j * KEYS + k);
          continue;
        }
        for (int one = j; one < std::min(Q, j + N); one++)  // what three queries and five keys leave
          for (int other = k; other < std::min(KEYS, k + M); other++)
            dot_block<BYTES, 1, 1>(q + one, cache.keys, rows + other, C, KEYS, dots + one * KEYS + other);
      }
    float dot[LANES];
    store(dot, sums(dots));
    for (int k = 0; k < KEYS; k++) {
      const float factor = BYTES ? cache.key_scales[rows[k]] * scale : scale;
      for (int j = 0; j < Q; j++) scores[j][i + k] = dot[j * KEYS + k] * factor;
    }
  }
}

// Σ weight · value over `n` keys for Q queries: PARTS sixteens of channels from `c` on, the last of which may be short.
template <bool BYTES, int Q, int PARTS>
static void mix(float* const (&weights)[Q], const Cache& cache, int64_t base, const int32_t* table, int first, int n,
                int C, int c, const float (&share)[Q], float* const (&out)[Q]) {
  Floats mixed[Q][PARTS] = {};
  const bool whole = c + PARTS * LANES <= C;
  for (int i = 0; i < n;) {
    const int64_t ahead_of_i = base + place(table, first + i) - i;
    const int end = std::min(n, i + BLOCK - (first + i) % BLOCK);  // of these keys, which lie side by side
    for (; i < end; i++) {
      const int64_t row = ahead_of_i + i;
      Floats value[PARTS];
      for (int p = 0; p < PARTS - 1; p++) value[p] = sixteen<BYTES>(cache.values, row * C + c + p * LANES);
      const int last = c + (PARTS - 1) * LANES;
      value[PARTS - 1] = whole ? sixteen<BYTES>(cache.values, row * C + last) : cached<BYTES>(cache.values, row, C, last);
      for (int j = 0; j < Q; j++) {
        const Floats weight = all(BYTES ? weights[j][i] * cache.value_scales[row] : weights[j][i]);
        for (int p = 0; p < PARTS; p++) mixed[j][p] = fma(weight, value[p], mixed[j][p]);
      }
    }
  }
  for (int j = 0; j < Q; j++)
    for (int p = 0; p < PARTS; p++)
      store_part(out[j] + c + p * LANES, mixed[j][p] * all(share[j]), C - c - p * LANES);
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

#if defined(FLEDGE_AVX2)
constexpr int QUERIES = 2;  // attended to together where they are neighbours in one sequence
#else
constexpr int QUERIES = 4;
#endif

// A head of Q neighbouring tokens, the first at `position`, each against its own past: out[j] [C].
template <bool BYTES, int Q>
static void attend(const float* const (&q)[Q], const Cache& cache, const Heads& heads, int head, const int32_t* table,
                   int position, float* const (&scores)[Q], float* const (&out)[Q]) {
  const int C = heads.channels, last = position + Q - 1;
  const int64_t base = (int64_t)(head / (heads.n_heads / heads.n_kv_heads)) * cache.positions;
  const auto begins = [&](int j) { return heads.window ? std::max(0, position + j + 1 - heads.window) : 0; };
  const int first = begins(0), n = last + 1 - first;
  score<BYTES, Q>(q, cache, base, table, first, n, C, heads.scale, scores);
  float share[Q];
  for (int j = 0; j < Q; j++) {
    const int before = begins(j) - first, own = position + j + 1 - begins(j);
    float* mine = scores[j] + before;
    if (heads.slopes)
      for (int i = 0; i < own; i++) mine[i] += heads.slopes[head] * (float)(i + 1 - own);
    share[j] = 1.0f / soften(mine, own, heads.softcap);
    for (int i = 0; i < before; i++) scores[j][i] = 0.0f;  // keys that others of the four see
    for (int i = own; i < n - before; i++) mine[i] = 0.0f;
  }
  const int sixteens = round_up(C, LANES) / LANES, times = (sixteens + parts_together(Q) - 1) / parts_together(Q);
  const int parts = (sixteens + times - 1) / times;  // as even as that many times allow
  for (int c = 0; c < C; c += parts * LANES) switch (std::min(parts, (C - c + LANES - 1) / LANES)) {
      case 1: mix<BYTES, Q, 1>(scores, cache, base, table, first, n, C, c, share, out); break;
      case 2: mix<BYTES, Q, 2>(scores, cache, base, table, first, n, C, c, share, out); break;
      case 3: mix<BYTES, Q, 3>(scores, cache, base, table, first, n, C, c, share, out); break;
      default: mix<BYTES, Q, 4>(scores, cache, base, table, first, n, C, c, share, out);
    }
}

// Floats that a query's scores take.
static inline int64_t score_room(int n_keys) { return round_up(n_keys, LANES) + 2 * LANES; }

// `n` <= QUERIES neighbouring tokens: queries and outputs lie `q_stride` and `out_stride` apart. `room`: the thread's,
// for as many queries' scores.
template <int Q>
static void attend_neighbours(int n, const float* q, int64_t q_stride, const Cache& cache, const Heads& heads, int head,
                              const int32_t* table, int position, std::vector<float>& room, float* out,
                              int64_t out_stride) {
  if constexpr (Q > 1)
    if (n < Q)
      return attend_neighbours<Q - 1>(n, q, q_stride, cache, heads, head, table, position, room, out, out_stride);
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

}  // namespace fledge
