// y = x Wᵀ + b over weights stored as panels: 32 outputs side by side, input after input, so that a product reads its
// weights once and in order. M rows, N outputs, K inputs.
//
//   float32  [N/32][K][32]
//   int8     [N/32][K/4][32][4]     one scale an output; rows of x are rounded to int8 with one scale each
//   int4     [N/32][2][K/8][16][4]  two inputs a byte (low: inputs 0..3 of eight, high: 4..7), values 0..15;
//            scale and scale · zero point for each group of inputs, [N/32][2][K/group][16] each
//
// An output is summed over its inputs in rising order whatever M is: a row has the same bits in any company.
#pragma once

#include <algorithm>
#include <vector>

#include "pool.h"
#include "simd.h"

namespace fledge {

constexpr int PANEL = 32;
constexpr int LEAST_GROUP = 32;  // inputs that share an int4 scale: at least so many
#if defined(__AVX512F__)
constexpr int ROWS = 12, FEW = 4;  // 24 of 32 registers hold sums; rows that may have two int4 halves at once
#else
constexpr int ROWS = 3, FEW = 1;  // 12 of 16
#endif

enum Kind : int32_t { NOTHING = 0, FLOAT32 = 1, INT8 = 2, INT4 = 3 };

// What Python fills in (fledge/nn/native/library.py has the same fields).
struct Matrix {
  int32_t kind, n_outputs, n_inputs, group;
  const void* weights;
  const float* scales;
  const float* zeros;    // int4: scale · zero point
  const int32_t* sums;   // int8: Σ of each output's weights
  const float* bias;
};

// The rows of x as a product reads them: tiles of up to ROWS rows, input after input, made by all threads together.
struct Packed {
  std::vector<float> floats;    // [tile][K][rows]
  std::vector<uint32_t> words;  // [tile][K/4][rows], four int8 each
  std::vector<float> scales;    // [M]
  std::vector<float> sums;      // [tile][K/group][rows]: Σ of a group's rounded inputs; tiles K/32 · rows apart
};

static void pack_row_int(const float* x, const Matrix& w, int n_rows, uint32_t* words, float* scale, float* sums) {
  const int K = w.n_inputs;
  Floats most{}, broken{};  // what is no finite number makes the whole row none
  for (int k = 0; k < K; k += LANES) {
    const Floats v = load_part(x + k, K - k);
    most = max(most, max(v, -v));
    broken = broken + (v - v);
  }
  const float size = largest(most);
  *scale = size / 127.0f + sum(broken);
  alignas(64) int8_t rounded[LANES];
  const int offset = w.kind == INT8 ? 128 : 0;
  const int group = w.kind == INT4 ? w.group : round_up(K, 4);
  int total = 0;
  for (int begin = 0; begin < K; begin += LANES) {
    const int n = std::min(LANES, K - begin);
    const Floats v = n == LANES ? load(x + begin) : load_part(x + begin, n);
    // 1.5 · 2^23 rounds to the nearest whole number, halves to even; a row of zeros divides by one
    Floats q = v / all(size > 0 ? *scale : 1.0f);
    q = (q + all(12582912.0f)) - all(12582912.0f);
    q = max(min(q, all(127.0f)), all(-127.0f));
    const Ints whole_numbers = to_ints(q);
    for (int i = 0; i < LANES; i++) rounded[i] = (int8_t)(whole_numbers[i] + offset);
    for (int i = 0; i < n; i++) total += whole_numbers[i];
    for (int i = 0; i < n; i += 4) {
      uint32_t word;
      std::memcpy(&word, rounded + i, 4);
      words[(int64_t)((begin + i) / 4) * n_rows] = word;
    }
    if (w.kind == INT4 && (begin + LANES) % group == 0) {
      sums[(int64_t)(begin / group) * n_rows] = (float)total;
      total = 0;
    }
  }
}

// Rows begin … end of a product in tiles: where one begins, and how many rows it has.
struct Tiles {
  int begin, end, count;
  Tiles(int begin, int end) : begin(begin), end(end), count((end - begin + ROWS - 1) / ROWS) {}
  int first(int tile) const { return std::min(end, begin + tile * ROWS); }
  int rows(int tile) const { return first(tile + 1) - first(tile); }
};

static inline int panels_of(const Matrix& w) { return (w.n_outputs + PANEL - 1) / PANEL; }

static void reserve(const Matrix& w, int M, Packed& to) {
  const size_t K4 = round_up(w.n_inputs, 4) / 4;
  if (w.kind == FLOAT32) {
    if (to.floats.size() < (size_t)M * w.n_inputs) to.floats.resize((size_t)M * w.n_inputs);
    return;
  }
  if (to.words.size() < M * K4) to.words.resize(M * K4);
  if (to.scales.size() < (size_t)M) to.scales.resize(M);
  if (w.kind == INT4) {
    const size_t need = (size_t)M * (w.n_inputs / LEAST_GROUP);
    if (to.sums.size() < need) to.sums.resize(need);
  }
}

// Row `m` of a product, one of `tiles`: x [K].
static void pack_row(const float* x, int m, const Matrix& w, const Tiles& tiles, Packed& to) {
  const int K = w.n_inputs, K4 = round_up(K, 4) / 4;
  const int tile = (m - tiles.begin) / ROWS, first = tiles.first(tile), n = tiles.rows(tile), at = m - first;
  if (w.kind == FLOAT32) {
    float* out = to.floats.data() + (int64_t)first * K + at;
    for (int k = 0; k < K; k++) out[(int64_t)k * n] = x[k];
  } else {
    pack_row_int(x, w, n, to.words.data() + (int64_t)first * K4 + at, &to.scales[m],
                 w.kind == INT4 ? to.sums.data() + (int64_t)first * (K / LEAST_GROUP) + at : nullptr);
  }
}

// How far ahead of their use weights are asked for: what the processor does by itself ends at each page.
constexpr int AHEAD = 1024;

static inline void ahead(const void* at) { __builtin_prefetch((const char*)at + AHEAD); }

constexpr int PARTS = PANEL / WIDE;  // registers of a panel's outputs

// Adds `n` inputs' products to the sums of R rows and P panels.
template <int R, int P>
static void float_tile(const float* x, const float* w, int64_t panel_stride, int n, Floats (&sums)[R][2 * P]) {
  constexpr int N = P * PARTS;
  Wide acc[R][N];  // in registers: the caller's would be written after every input
  std::memcpy(acc, sums, sizeof acc);
  for (int k = 0; k < n; k++) {
    for (int p = 0; p < P; p++) {
      const float* at = w + p * panel_stride + (int64_t)k * PANEL;
      ahead(at), ahead(at + LANES);
    }
    const auto weight = [&](int p) {
      return load_wide(w + p / PARTS * panel_stride + (int64_t)k * PANEL + p % PARTS * WIDE);
    };
    const auto value = [&](int r) { return wide(x[(int64_t)k * R + r]); };
    if constexpr (WIDE == LANES) {  // registers for the panel's weights, or for the rows' inputs
      Wide weights[N];
      for (int p = 0; p < N; p++) weights[p] = weight(p);
      for (int r = 0; r < R; r++) {
        const Wide one = value(r);
        for (int p = 0; p < N; p++) acc[r][p] = fma(one, weights[p], acc[r][p]);
      }
    } else {
      Wide values[R];
      for (int r = 0; r < R; r++) values[r] = value(r);
      for (int p = 0; p < N; p++) {
        const Wide one = weight(p);
        for (int r = 0; r < R; r++) acc[r][p] = fma(values[r], one, acc[r][p]);
      }
    }
  }
  std::memcpy(sums, acc, sizeof acc);
}

static inline Ints load_ints(const void* from) {
  Ints v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <int R, int P>
static void int8_tile(const uint32_t* x, const int8_t* w, int64_t panel_stride, int K4, Ints (&sums)[R][2 * P]) {
  constexpr int N = P * PARTS;
  WideInts acc[R][N];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < N; p++) acc[r][p] = WideInts{};
  for (int k = 0; k < K4; k++) {
    WideInts weight[N];
    for (int p = 0; p < P; p++) {
      const int8_t* at = w + p * panel_stride + (int64_t)k * PANEL * 4;
      ahead(at), ahead(at + 64);
      for (int part = 0; part < PARTS; part++) weight[p * PARTS + part] = load_wide_ints(at + part * WIDE * 4);
    }
    for (int r = 0; r < R; r++) {
      const WideInts value = wide((int32_t)x[(int64_t)k * R + r]);
      for (int p = 0; p < N; p++) acc[r][p] = dot4(acc[r][p], value, weight[p]);
    }
  }
  std::memcpy(sums, acc, sizeof acc);
}

// Σ over inputs 8 · first … 8 · last of int4 weights by rounded inputs, for R rows and N registers of outputs.
template <int R, int N>
static inline void int4_sums(const uint32_t* x, const uint8_t* const (&w)[N], int first, int last,
                             WideInts (&sums)[R][N]) {
  const WideInts low = wide(0x0f0f0f0f);
#if defined(__AVX2__) && !defined(__AVX512F__)
  const auto pairs = [](WideInts a, WideInts b) { return _mm256_maddubs_epi16((__m256i)a, (__m256i)b); };
  for (int begin = first; begin < last; begin += 4) {
    __m256i near_sums[R][N] = {};  // of 16 numbers of at most 15 · 127: 16 bits hold them
    for (int k = begin; k < begin + 4; k++)
      for (int p = 0; p < N; p++) {
        const WideInts both = load_wide_ints(w[p] + (int64_t)k * 64), near = both & low, far = (both >> 4) & low;
        for (int r = 0; r < R; r++) {
          const uint32_t* at = x + (int64_t)2 * k * R + r;
          const __m256i sum = _mm256_add_epi16(pairs(near, wide((int32_t)at[0])), pairs(far, wide((int32_t)at[R])));
          near_sums[r][p] = _mm256_add_epi16(near_sums[r][p], sum);
        }
      }
    for (int r = 0; r < R; r++)
      for (int p = 0; p < N; p++) sums[r][p] += (WideInts)_mm256_madd_epi16(near_sums[r][p], _mm256_set1_epi16(1));
  }
#else
  for (int k = first; k < last; k++) {
    WideInts near[N], far[N];
    for (int p = 0; p < N; p++) {
      const uint8_t* bytes = w[p] + (int64_t)k * 64;
      ahead(bytes);
      const WideInts both = load_wide_ints(bytes);
      near[p] = both & low;
      far[p] = (both >> 4) & low;
    }
    const uint32_t* at = x + (int64_t)2 * k * R;
    for (int r = 0; r < R; r++) {
      const WideInts first4 = wide((int32_t)at[r]), second4 = wide((int32_t)at[R + r]);
      for (int p = 0; p < N; p++) {
        sums[r][p] = dot4(sums[r][p], near[p], first4);
        sums[r][p] = dot4(sums[r][p], far[p], second4);
      }
    }
  }
#endif
}

// Half a panel (16 outputs) of int4 weights, P of them at once.
template <int R, int P>
static void int4_tile(const uint32_t* x, const float* x_sums, const uint8_t* w, int64_t stride, const float* scales,
                      const float* zeros, int64_t scale_stride, int groups, int group, Floats (&sums)[R][P]) {
  constexpr int HALF = LANES / WIDE, N = P * HALF;
  Wide acc[R][N];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < N; p++) acc[r][p] = Wide{};
  const uint8_t* weights[N];
  for (int p = 0; p < N; p++) weights[p] = w + p / HALF * stride + p % HALF * WIDE * 4;
  for (int g = 0; g < groups; g++) {
    WideInts whole[R][N];
    for (int r = 0; r < R; r++)
      for (int p = 0; p < N; p++) whole[r][p] = WideInts{};
    int4_sums<R, N>(x, weights, g * group / 8, (g + 1) * group / 8, whole);
    for (int p = 0; p < N; p++) {
      const int64_t at = p / HALF * scale_stride + (int64_t)g * LANES + p % HALF * WIDE;
      const Wide scale = load_wide(scales + at), zero = load_wide(zeros + at);
      for (int r = 0; r < R; r++) {
        acc[r][p] = fma(scale, __builtin_convertvector(whole[r][p], Wide), acc[r][p]);
        acc[r][p] = fma(-zero, wide(x_sums[(int64_t)g * R + r]), acc[r][p]);
      }
    }
  }
  std::memcpy(sums, acc, sizeof acc);
}

static inline void write(float* y, Floats v, const Matrix& w, int n) {
  const int left = w.n_outputs - n;
  if (left <= 0) return;
  if (left >= LANES)
    store(y + n, w.bias ? v + load(w.bias + n) : v);
  else
    store_part(y + n, w.bias ? v + load_part(w.bias + n, left) : v, left);
}

// P panels from `panel` on for the R rows of a tile.
template <int R, int P>
static void tile_product(const Matrix& w, const Packed& x, int row, int panel, float* y, int64_t stride) {
  const int K = w.n_inputs;
  if (w.kind == FLOAT32) {
    Floats acc[R][2 * P] = {};
    const int64_t size = (int64_t)K * PANEL;
    float_tile<R, P>(x.floats.data() + (int64_t)row * K, (const float*)w.weights + panel * size, size, K, acc);
    for (int r = 0; r < R; r++)
      for (int p = 0; p < 2 * P; p++) write(y + (row + r) * stride, acc[r][p], w, panel * PANEL + p * LANES);
  } else if (w.kind == INT8) {
    Ints acc[R][2 * P];
    const int K4 = round_up(K, 4) / 4;
    const int64_t size = (int64_t)K4 * 4 * PANEL;
    int8_tile<R, P>(x.words.data() + (int64_t)row * K4, (const int8_t*)w.weights + panel * size, size, K4, acc);
    for (int p = 0; p < 2 * P; p++) {
      const int n = panel * PANEL + p * LANES;
      const Floats scale = load(w.scales + n);
      const Ints offset = load_ints(w.sums + n) * 128;
      for (int r = 0; r < R; r++)
        write(y + (row + r) * stride, to_floats(acc[r][p] - offset) * (all(x.scales[row + r]) * scale), w, n);
    }
  } else {
    Floats acc[R][2 * P];
    const int K4 = K / 4, groups = K / w.group;
    const int64_t size = (int64_t)K / 8 * 64, scales = (int64_t)groups * LANES;
    const uint32_t* words = x.words.data() + (int64_t)row * K4;
    const float* sums = x.sums.data() + (int64_t)row * (K / LEAST_GROUP);
    const uint8_t* weights = (const uint8_t*)w.weights + 2 * panel * size;
    if (R <= FEW) {
      int4_tile<R, 2 * P>(words, sums, weights, size, w.scales + 2 * panel * scales, w.zeros + 2 * panel * scales,
                          scales, groups, w.group, acc);
    } else {
      for (int p = 0; p < 2 * P; p++) {
        Floats half[R][1];
        const int64_t at = 2 * panel + p;
        int4_tile<R, 1>(words, sums, weights + p * size, size, w.scales + at * scales, w.zeros + at * scales, scales,
                        groups, w.group, half);
        for (int r = 0; r < R; r++) acc[r][p] = half[r][0];
      }
    }
    for (int r = 0; r < R; r++)
      for (int p = 0; p < 2 * P; p++)
        write(y + (row + r) * stride, acc[r][p] * all(x.scales[row + r]), w, panel * PANEL + p * LANES);
  }
}

template <int R>
static void row_tile(const Matrix& w, const Packed& x, int row, Share panels, float* y, int64_t stride) {
  // few rows: several panels at a time, so that enough sums are under way
  constexpr int P = WIDE < LANES ? (R == 1 ? 2 : 1) : R == 1 ? 4 : R <= 3 ? 2 : 1;
  int panel = panels.first;
  for (; panel + P <= panels.last; panel += P) tile_product<R, P>(w, x, row, panel, y, stride);
  for (; panel < panels.last; panel++) tile_product<R, 1>(w, x, row, panel, y, stride);
}

template <int R>
static void any_tile(int n, const Matrix& w, const Packed& x, int row, Share panels, float* y, int64_t stride) {
  if (n == R) return row_tile<R>(w, x, row, panels, y, stride);
  if constexpr (R > 1) any_tile<R - 1>(n, w, x, row, panels, y, stride);
}

// float32 and many rows: blocks of rows and of inputs that stay in the cache; sums wait in `y` between blocks of inputs,
// which leaves their bits alone.
constexpr int BLOCK_INPUTS = WIDE < LANES ? 256 : 512, BLOCK_TILES = 192 / ROWS;

template <int R>
static void float_block(const Matrix& w, const Packed& x, int row, int panel, int from, int n, float* y, int64_t stride) {
  const int K = w.n_inputs, left = w.n_outputs - panel * PANEL;
  Floats acc[R][2] = {};
  for (int r = 0; from && r < R; r++)
    for (int p = 0; p < 2; p++) {
      const float* at = y + (row + r) * stride + panel * PANEL + p * LANES;
      const int there = left - p * LANES;
      acc[r][p] = there >= LANES ? load(at) : there > 0 ? load_part(at, there) : Floats{};
    }
  float_tile<R, 1>(x.floats.data() + (int64_t)row * K + (int64_t)from * R,
                   (const float*)w.weights + ((int64_t)panel * K + from) * PANEL, 0, n, acc);
  Matrix without_bias = w;
  if (from + n < K) without_bias.bias = nullptr;
  for (int r = 0; r < R; r++)
    for (int p = 0; p < 2; p++) write(y + (row + r) * stride, acc[r][p], without_bias, panel * PANEL + p * LANES);
}

template <int R>
static void any_block(int rows, const Matrix& w, const Packed& x, int row, int panel, int from, int n, float* y,
                      int64_t stride) {
  if (rows == R) return float_block<R>(w, x, row, panel, from, n, y, stride);
  if constexpr (R > 1) any_block<R - 1>(rows, w, x, row, panel, from, n, y, stride);
}

static void float_blocks(const Matrix& w, const Packed& x, const Tiles& tiles, float* y, int64_t stride, Share panels) {
  for (int begin = 0; begin < tiles.count; begin += BLOCK_TILES)
    for (int from = 0; from < w.n_inputs; from += BLOCK_INPUTS)
      for (int panel = panels.first; panel < panels.last; panel++)
        for (int tile = begin; tile < std::min(tiles.count, begin + BLOCK_TILES); tile++)
          any_block<ROWS>(tiles.rows(tile), w, x, tiles.first(tile), panel, from,
                          std::min(BLOCK_INPUTS, w.n_inputs - from), y, stride);
}

// One thread's share of the product: all rows of some panels.
static void product(const Matrix& w, const Packed& x, const Tiles& tiles, float* y, int64_t stride, Share panels) {
  if (tiles.count == 1) return any_tile<ROWS>(tiles.rows(0), w, x, tiles.begin, panels, y, stride);
  if (w.kind == FLOAT32) return float_blocks(w, x, tiles, y, stride, panels);
  for (int begin = 0; begin < tiles.count; begin += BLOCK_TILES)
    for (int panel = panels.first; panel < panels.last; panel++) {
      Share one(1, 0, 1);
      one.first = panel, one.last = panel + 1;
      for (int tile = begin; tile < std::min(tiles.count, begin + BLOCK_TILES); tile++)
        any_tile<ROWS>(tiles.rows(tile), w, x, tiles.first(tile), one, y, stride);
    }
}

// Called by all threads of a pool: x [M, K] with rows `x_stride` apart, y [M, N] with rows `y_stride` apart; `packed`
// has room (`reserve`). Ends at a barrier.
static void matmul(Pool& pool, int rank, const float* x, int64_t x_stride, const Matrix& w, int M, float* y,
                   int64_t y_stride, Packed& packed) {
  pool.barrier();
  const Tiles tiles(0, M);
  const Share rows(M, rank, pool.n_threads);
  for (int m = rows.first; m < rows.last; m++) pack_row(x + m * x_stride, m, w, tiles, packed);
  pool.barrier();
  product(w, packed, tiles, y, y_stride, Share(panels_of(w), rank, pool.n_threads));
  pool.barrier();
}

}  // namespace fledge
