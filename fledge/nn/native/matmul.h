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
// Rows of a tile, and how many sixteens of outputs (halves of panels) R of them take at once: so that enough sums are
// under way, and all of them in registers. In whole numbers WHOLE_ROWS of the rows go together.
#if defined(FLEDGE_AVX2)
constexpr int ROWS = 6, WHOLE_ROWS = 6;  // 12 of 16 registers of half the size hold sums
constexpr int halves(int R) { return R == 1 ? 4 : R <= 3 ? 2 : 1; }
constexpr int int8_halves(int R) { return R == 1 ? 4 : R == 2 ? 2 : 1; }  // of few rows memory sets the pace
constexpr int int4_halves(int) { return 1; }
constexpr int INT8_WORDS = 2;  // for four inputs of a row: int16 each where several rows go together (`wide`)
constexpr bool wide(int rows) { return rows > 2; }
#else
#if defined(__AVX512F__)
constexpr int ROWS = 12, WHOLE_ROWS = 12;  // 24 of 32 registers
#else
constexpr int ROWS = 4, WHOLE_ROWS = 4;
#endif
constexpr int halves(int R) { return R == 1 ? 8 : R <= 3 ? 4 : 2; }
constexpr int int8_halves(int R) { return halves(R); }
constexpr int INT8_WORDS = 1;
constexpr bool wide(int) { return false; }
constexpr int int4_halves(int R) { return R <= 4 ? halves(R) : 1; }
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
  std::vector<uint32_t> words;  // [tile][K/4][rows], four int8 each; where `wide`, four int16 in two words
  std::vector<float> scales;    // [M]
  std::vector<float> sums;      // [tile][K/group][rows]: Σ of a group's rounded inputs; tiles K/32 · rows apart
};

// Σ over four products of bytes, added to each lane: dot_int8 of inputs and weights, dot_int4 of weights, 0..15, and
// inputs. VNNI multiplies unsigned by signed bytes, so inputs of int8 weights are stored OFFSET larger there. AVX2 adds
// pairs of such products in sixteen bits, which they must not leave: a weight's size, at most 128, times an input with
// the weight's sign does not, and sums of int4's stay there for SHORT_STEPS steps of eight inputs. For several rows it
// multiplies int16 instead: a weight is widened once for all of them, and no sign is to be moved.
#if defined(FLEDGE_AVX2)
constexpr int OFFSET = 0, SHORT_STEPS = 4;
typedef Ints Shorts;
static inline __m256i pairs(__m256i v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
static inline __m256i dot_int8(__m256i sum, __m256i inputs, __m256i weights, __m256i sizes) {
  return _mm256_add_epi32(sum, pairs(_mm256_maddubs_epi16(sizes, _mm256_sign_epi8(inputs, weights))));
}
static inline Shorts dot_int4(Shorts sum, Ints weights, Ints inputs) {
  return {_mm256_add_epi16(sum.a, _mm256_maddubs_epi16(weights.a, inputs.a)),
          _mm256_add_epi16(sum.b, _mm256_maddubs_epi16(weights.b, inputs.b))};
}
static inline Shorts begun(Ints) { return all(0); }
static inline Ints ended(Ints sum, Shorts shorts) { return sum + Ints{pairs(shorts.a), pairs(shorts.b)}; }
#else
constexpr int SHORT_STEPS = 1 << 20;
typedef Ints Shorts;
#if defined(__AVX512VNNI__)
constexpr int OFFSET = 128;
static inline Ints dot_int8(Ints sum, Ints inputs, Ints weights) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weights);
}
static inline Shorts dot_int4(Shorts sum, Ints weights, Ints inputs) { return dot_int8(sum, weights, inputs); }
#else
constexpr int OFFSET = 0;
static inline Ints dot_int8(Ints sum, Ints inputs, Ints weights) {
  int8_t a[64], b[64];
  std::memcpy(a, &inputs, 64);
  std::memcpy(b, &weights, 64);
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < 4; j++) sum[i] += a[4 * i + j] * b[4 * i + j];
  return sum;
}
static inline Shorts dot_int4(Shorts sum, Ints weights, Ints inputs) { return dot_int8(sum, inputs, weights); }
#endif
static inline Shorts begun(Ints sum) { return sum; }
static inline Ints ended(Ints, Shorts sum) { return sum; }
#endif

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
  const int offset = w.kind == INT8 ? OFFSET : 0;
  const int group = w.kind == INT4 ? w.group : round_up(K, 4);
  const bool as_int16 = w.kind == INT8 && wide(n_rows);
  int total = 0;
  for (int begin = 0; begin < K; begin += LANES) {
    const int n = std::min(LANES, K - begin);
    const Floats v = n == LANES ? load(x + begin) : load_part(x + begin, n);
    // 1.5 · 2^23 rounds to the nearest whole number, halves to even; a row of zeros divides by one
    Floats q = v / all(size > 0 ? *scale : 1.0f);
    q = (q + all(12582912.0f)) - all(12582912.0f);
    q = max(min(q, all(127.0f)), all(-127.0f));
    const Ints whole_numbers = to_ints(q);
    store_bytes(rounded, whole_numbers + all(offset));
    if (w.kind == INT4) {
      int32_t each[LANES];
      store_ints(each, whole_numbers);
      for (int i = 0; i < n; i++) total += each[i];
    }
    uint32_t* to = words + (int64_t)(begin / 4) * n_rows * (as_int16 ? 2 : 1);
    if (as_int16) {
      int16_t each[LANES];
      for (int i = 0; i < LANES; i++) each[i] = rounded[i];
      for (int i = 0; i < n; i += 4) std::memcpy(to + (int64_t)i / 2 * n_rows, each + i, 8);
    } else {
      for (int i = 0; i < n; i += 4) std::memcpy(to + (int64_t)i / 4 * n_rows, rounded + i, 4);
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
  if (to.words.size() < INT8_WORDS * M * K4) to.words.resize(INT8_WORDS * M * K4);
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
    const int room = w.kind == INT8 ? INT8_WORDS : 1, each = w.kind == INT8 && wide(n) ? 2 : 1;
    pack_row_int(x, w, n, to.words.data() + (int64_t)first * K4 * room + at * each, &to.scales[m],
                 w.kind == INT4 ? to.sums.data() + (int64_t)first * (K / LEAST_GROUP) + at : nullptr);
  }
}

// How far ahead of their use weights are asked for: what the processor does by itself ends at each page.
constexpr int AHEAD = 1024;

static inline void ahead(const void* at) { __builtin_prefetch((const char*)at + AHEAD); }

// Adds `n` inputs' products to the sums of R rows and H halves of panels, the first at `w`.
template <int R, int H>
static void float_tile(const float* x, const float* w, int64_t panel_stride, int n, Floats (&sums)[R][H]) {
  Floats acc[R][H];  // in registers: the caller's would be written after every input
  std::memcpy(acc, sums, sizeof acc);
  for (int k = 0; k < n; k++) {
    Floats weight[H];
    for (int h = 0; h < H; h++) {
      const float* at = w + (h / 2) * panel_stride + (int64_t)k * PANEL + h % 2 * LANES;
      ahead(at);
      weight[h] = load(at);
    }
    for (int r = 0; r < R; r++) {
      const Floats value = all(x[(int64_t)k * R + r]);
      for (int h = 0; h < H; h++) acc[r][h] = fma(value, weight[h], acc[r][h]);
    }
  }
  std::memcpy(sums, acc, sizeof acc);
}

// Sums of R of a tile's `rows` rows of int8 and H halves of panels over all inputs.
#if defined(FLEDGE_AVX2)
// Eight outputs after eight: sixteen for several rows would leave no register for a weight and its size.
template <int R>
static void wide_tile(const uint32_t* x, int rows, const int8_t* w, int K4, Ints (&sums)[R][1]) {
  for (int e = 0; e < 2; e++) {
    __m256i acc[R][2];  // four outputs each, inputs 0 and 1 of four beside 2 and 3
    for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int k = 0; k < K4; k++) {
      const int8_t* at = w + ((int64_t)k * PANEL + e * 8) * 4;
      if (e == 0) ahead(at);
      const __m256i first = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)at));
      const __m256i second = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)at + 1));
      for (int r = 0; r < R; r++) {
        int64_t four;
        std::memcpy(&four, x + 2 * ((int64_t)k * rows + r), sizeof four);
        const __m256i inputs = _mm256_set1_epi64x(four);
        acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(inputs, first));
        acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(inputs, second));
        asm("" : "+x"(acc[r][0]), "+x"(acc[r][1]));  // or GCC loads all inputs first, and keeps sums in memory for it
      }
    }
    for (int r = 0; r < R; r++)
      (e ? sums[r][0].b : sums[r][0].a) =
          _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[r][0], acc[r][1]), _MM_SHUFFLE(3, 1, 2, 0));
  }
}

template <int R, int H>
static void int8_tile(const uint32_t* x, int rows, const int8_t* w, int64_t panel_stride, int K4, Ints (&sums)[R][H]) {
  if constexpr (wide(R)) return wide_tile(x, rows, w, K4, sums);
  __m256i acc[R][2 * H];
  for (int r = 0; r < R; r++)
    for (int e = 0; e < 2 * H; e++) acc[r][e] = _mm256_setzero_si256();
#pragma GCC unroll 2
  for (int k = 0; k < K4; k++)
    for (int e = 0; e < 2 * H; e++) {
      const int8_t* at = w + (e / 4) * panel_stride + ((int64_t)k * PANEL + e % 4 * 8) * 4;
      if (e % 2 == 0) ahead(at);
      const __m256i weight = _mm256_loadu_si256((const __m256i*)at), size = _mm256_abs_epi8(weight);
      for (int r = 0; r < R; r++)
        acc[r][e] = dot_int8(acc[r][e], _mm256_set1_epi32((int32_t)x[(int64_t)k * rows + r]), weight, size);
    }
  std::memcpy(sums, acc, sizeof acc);
}
#else
template <int R, int H>
static void int8_tile(const uint32_t* x, int rows, const int8_t* w, int64_t panel_stride, int K4, Ints (&sums)[R][H]) {
  Ints acc[R][H];
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) acc[r][h] = all(0);
  for (int k = 0; k < K4; k++) {
    Ints weight[H];
    for (int h = 0; h < H; h++) {
      const int8_t* at = w + (h / 2) * panel_stride + ((int64_t)k * PANEL + h % 2 * LANES) * 4;
      ahead(at);
      weight[h] = load_ints(at);
    }
    for (int r = 0; r < R; r++) {
      const Ints value = all((int32_t)x[(int64_t)k * rows + r]);
      for (int h = 0; h < H; h++) acc[r][h] = dot_int8(acc[r][h], value, weight[h]);
    }
  }
  std::memcpy(sums, acc, sizeof acc);
}
#endif

// The same of int4, whose halves lie `stride` apart, in float32.
template <int R, int H>
static void int4_tile(const uint32_t* x, const float* x_sums, int rows, const uint8_t* w, int64_t stride,
                      const float* scales, const float* zeros, int64_t scale_stride, int groups, int group,
                      Floats (&sums)[R][H]) {
  Floats acc[R][H];
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) acc[r][h] = all(0.0f);
  const Ints low = all(0x0f0f0f0f);
  for (int g = 0; g < groups; g++) {
    Ints whole[R][H];
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) whole[r][h] = all(0);
    const int end = (g + 1) * group / 8;
    for (int first = g * group / 8; first < end; first += SHORT_STEPS) {
      Shorts part[R][H];
      for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) part[r][h] = begun(whole[r][h]);
      for (int k = first; k < std::min(end, first + SHORT_STEPS); k++) {
        Ints near[H], far[H];
        for (int h = 0; h < H; h++) {
          const uint8_t* bytes = w + h * stride + (int64_t)k * 64;
          ahead(bytes);
          const Ints both = load_ints(bytes);
          near[h] = both & low;
          far[h] = (both >> 4) & low;
        }
        const uint32_t* at = x + (int64_t)2 * k * rows;
        for (int r = 0; r < R; r++) {
          const Ints first4 = all((int32_t)at[r]), second4 = all((int32_t)at[rows + r]);
          for (int h = 0; h < H; h++) part[r][h] = dot_int4(dot_int4(part[r][h], near[h], first4), far[h], second4);
        }
      }
      for (int r = 0; r < R; r++)
        for (int h = 0; h < H; h++) whole[r][h] = ended(whole[r][h], part[r][h]);
    }
    for (int h = 0; h < H; h++) {
      const Floats scale = load(scales + h * scale_stride + (int64_t)g * LANES);
      const Floats zero = load(zeros + h * scale_stride + (int64_t)g * LANES);
      for (int r = 0; r < R; r++) {
        acc[r][h] = fma(scale, to_floats(whole[r][h]), acc[r][h]);
        acc[r][h] = fma(-zero, all(x_sums[(int64_t)g * rows + r]), acc[r][h]);
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

// In whole numbers: R rows from `from` on of a tile of `rows`, H halves of panels from `half` on.
template <int R, int H>
static void int8_product(const Matrix& w, const Packed& x, int row, int from, int rows, int half, float* y,
                         int64_t stride) {
  const int K4 = round_up(w.n_inputs, 4) / 4;
  const int64_t size = (int64_t)K4 * 4 * PANEL;
  Ints acc[R][H];
  int8_tile<R, H>(x.words.data() + (int64_t)row * K4 * INT8_WORDS + from, rows,
                  (const int8_t*)w.weights + half / 2 * size + half % 2 * LANES * 4, size, K4, acc);
  for (int h = 0; h < H; h++) {
    const int n = (half + h) * LANES;
    const Floats scale = load(w.scales + n);
    const Ints beside = OFFSET ? load_ints(w.sums + n) << 7 : all(0);  // all inputs were OFFSET larger
    for (int r = from; r < from + R; r++)
      write(y + (row + r) * stride, to_floats(acc[r - from][h] - beside) * (all(x.scales[row + r]) * scale), w, n);
  }
}

template <int R, int H>
static void int4_product(const Matrix& w, const Packed& x, int row, int from, int rows, int half, float* y,
                         int64_t stride) {
  const int K = w.n_inputs, groups = K / w.group;
  const int64_t size = (int64_t)K / 8 * 64, scales = (int64_t)groups * LANES;
  Floats acc[R][H];
  int4_tile<R, H>(x.words.data() + (int64_t)row * (K / 4) + from, x.sums.data() + (int64_t)row * (K / LEAST_GROUP) + from, rows,
                  (const uint8_t*)w.weights + half * size, size, w.scales + half * scales, w.zeros + half * scales,
                  scales, groups, w.group, acc);
  for (int r = from; r < from + R; r++)
    for (int h = 0; h < H; h++)
      write(y + (row + r) * stride, acc[r - from][h] * all(x.scales[row + r]), w, (half + h) * LANES);
}

template <int R, int H>
static void float_product(const Matrix& w, const Packed& x, int row, int half, float* y, int64_t stride) {
  const int K = w.n_inputs;
  const int64_t size = (int64_t)K * PANEL;
  Floats acc[R][H];
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) acc[r][h] = all(0.0f);
  float_tile<R, H>(x.floats.data() + (int64_t)row * K, (const float*)w.weights + half / 2 * size + half % 2 * LANES,
                   size, K, acc);
  for (int r = 0; r < R; r++)
    for (int h = 0; h < H; h++) write(y + (row + r) * stride, acc[r][h], w, (half + h) * LANES);
}

// H halves of panels from `half` on for the R rows of a tile.
template <int R, int H>
static void tile_product(const Matrix& w, const Packed& x, int row, int half, float* y, int64_t stride) {
  constexpr int FIRST = R <= WHOLE_ROWS ? R : (R + 1) / 2, REST = R - FIRST;
  if (w.kind == FLOAT32) return float_product<R, H>(w, x, row, half, y, stride);
  if (w.kind == INT8) {
    constexpr int EACH = std::min(H, int8_halves(R));
    for (int h = half; h < half + H; h += EACH) {
      int8_product<FIRST, EACH>(w, x, row, 0, R, h, y, stride);
      if constexpr (REST > 0) int8_product<REST, EACH>(w, x, row, FIRST, R, h, y, stride);
    }
  } else {
    constexpr int EACH = std::min(H, int4_halves(R));
    for (int h = half; h < half + H; h += EACH) {
      int4_product<FIRST, EACH>(w, x, row, 0, R, h, y, stride);
      if constexpr (REST > 0) int4_product<REST, EACH>(w, x, row, FIRST, R, h, y, stride);
    }
  }
}

template <int R>
static void row_tile(const Matrix& w, const Packed& x, int row, Share panels, float* y, int64_t stride) {
  constexpr int H = halves(R), LEAST = std::min(H, 2);
  const int last = 2 * panels.last;
  int half = 2 * panels.first;
  for (; half + H <= last; half += H) tile_product<R, H>(w, x, row, half, y, stride);
  for (; half < last; half += LEAST) tile_product<R, LEAST>(w, x, row, half, y, stride);
}

template <int R>
static void any_tile(int n, const Matrix& w, const Packed& x, int row, Share panels, float* y, int64_t stride) {
  if (n == R) return row_tile<R>(w, x, row, panels, y, stride);
  if constexpr (R > 1) any_tile<R - 1>(n, w, x, row, panels, y, stride);
}

// float32 and many rows: blocks of rows and of inputs that stay in the cache; sums wait in `y` between blocks of inputs,
// which leaves their bits alone.
constexpr int BLOCK_INPUTS = 1024, BLOCK_TILES = (512 + ROWS - 1) / ROWS;

template <int R>
static void float_block(const Matrix& w, const Packed& x, int row, int panel, int from, int n, float* y, int64_t stride) {
  constexpr int H = std::min(2, halves(R));
  const int K = w.n_inputs;
  Matrix without_bias = w;
  if (from + n < K) without_bias.bias = nullptr;
  for (int half = 2 * panel; half < 2 * panel + 2; half += H) {
    Floats acc[R][H];
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) {
        const int at = (half + h) * LANES;
        acc[r][h] = from && at < w.n_outputs ? load_part(y + (row + r) * stride + at, w.n_outputs - at) : all(0.0f);
      }
    float_tile<R, H>(x.floats.data() + (int64_t)row * K + (int64_t)from * R,
                     (const float*)w.weights + ((int64_t)panel * K + from) * PANEL + half % 2 * LANES, 0, n, acc);
    for (int r = 0; r < R; r++)
      for (int h = 0; h < H; h++) write(y + (row + r) * stride, acc[r][h], without_bias, (half + h) * LANES);
  }
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
