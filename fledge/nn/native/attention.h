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
#if defined(__AVX512F__)
  if (n >= LANES) return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#endif
  Floats v{};
  for (int i = 0; i < std::min(n, LANES); i++) v[i] = from[i];
  return v;
}

// Sixteen channels of the cache from element `at` on.
template <bool BYTES>
static inline Floats sixteen(const void* from, int64_t at) {
  return BYTES ? load_bytes((const int8_t*)from + at, LANES) : load((const float*)from + at);
}

// As much of the cache from element `at` on as a register holds.
template <bool BYTES>
static inline Wide wide_cached(const void* from, int64_t at) {
  if (!BYTES) return load_wide((const float*)from + at);
  if (WIDE == LANES) {
    const Floats all_lanes = sixteen<BYTES>(from, at);
    Wide v;
    std::memcpy(&v, &all_lanes, sizeof v);
    return v;
  }
  typedef int8_t WideBytes __attribute__((vector_size(WIDE)));
  WideBytes bytes;
  std::memcpy(&bytes, (const int8_t*)from + at, sizeof bytes);
  return __builtin_convertvector(bytes, Wide);
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

constexpr int HALVES = LANES / WIDE;  // registers of sixteen floats

// Scores of Q queries [C] with `n` keys from position `first` on: scores[j][i], room for 16 more. Sixteen at a time.
template <bool BYTES, int Q>
static void score(const float* const (&q)[Q], const Cache& cache, int64_t base, const int32_t* table, int first, int n,
                  int C, float scale, float* const (&scores)[Q]) {
  constexpr int KEYS = LANES / Q;
  for (int i = 0; i < n; i += KEYS) {
    Floats dots[LANES] = {};
    int64_t rows[KEYS];
    for (int k = 0; k < KEYS; k++) rows[k] = base + place(table, first + std::min(i + k, n - 1));
    const int c = C / LANES * LANES;
    constexpr int TOGETHER = WIDE == LANES ? KEYS : std::max(1, 4 / Q);  // keys in registers at once
    for (int begin = 0; begin < KEYS; begin += TOGETHER) {
      Wide part[Q][TOGETHER][HALVES] = {};
      for (int at = 0; at < c; at += WIDE * HALVES)
        for (int k = 0; k < TOGETHER; k++)
          for (int p = 0; p < HALVES; p++) {
            const Wide key = wide_cached<BYTES>(cache.keys, rows[begin + k] * C + at + p * WIDE);
            for (int j = 0; j < Q; j++)
              part[j][k][p] = fma(load_wide(q[j] + at + p * WIDE), key, part[j][k][p]);
          }
      for (int j = 0; j < Q; j++) std::memcpy(&dots[j * KEYS + begin], part[j], sizeof part[j]);
    }
    if (c < C)
      for (int k = 0; k < KEYS; k++) {
        const Floats key = cached<BYTES>(cache.keys, rows[k], C, c);
        for (int j = 0; j < Q; j++) dots[j * KEYS + k] = fma(load_part(q[j] + c, C - c), key, dots[j * KEYS + k]);
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
  Wide mixed[Q][PARTS][HALVES] = {};
  const bool whole = c + PARTS * LANES <= C;
  for (int i = 0; i < n; i++) {
    const int64_t row = base + place(table, first + i);
    Wide value[PARTS][HALVES];
    for (int p = 0; p < PARTS - 1 + whole; p++)
      for (int h = 0; h < HALVES; h++)
        value[p][h] = wide_cached<BYTES>(cache.values, row * C + c + p * LANES + h * WIDE);
    if (!whole) {
      const Floats last = cached<BYTES>(cache.values, row, C, c + (PARTS - 1) * LANES);
      std::memcpy(value[PARTS - 1], &last, sizeof last);
    }
    for (int j = 0; j < Q; j++) {
      const Wide weight = wide(BYTES ? weights[j][i] * cache.value_scales[row] : weights[j][i]);
      for (int p = 0; p < PARTS; p++)
        for (int h = 0; h < HALVES; h++) mixed[j][p][h] = fma(weight, value[p][h], mixed[j][p][h]);
    }
  }
  for (int j = 0; j < Q; j++)
    for (int p = 0; p < PARTS; p++) {
      Floats sum;
      std::memcpy(&sum, mixed[j][p], sizeof sum);
      store_part(out[j] + c + p * LANES, sum * all(share[j]), C - c - p * LANES);
    }
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

constexpr int QUERIES = 4;  // attended to together where they are neighbours in one sequence

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
  constexpr int MOST = WIDE == LANES ? 4 : Q >= 3 ? 1 : 4 / Q;  // sixteens of channels whose sums registers hold
  for (int c = 0; c < C; c += MOST * LANES) switch (std::min(MOST, (C - c + LANES - 1) / LANES)) {
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
