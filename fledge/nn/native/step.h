// A decoder's forward pass over new tokens of many sequences: every thread runs it, meeting the others at barriers.
//
// M tokens, D width. The fields are what fledge/engine/native.py fills in.
#pragma once

#include "attention.h"
#include "experts.h"
#include "matmul.h"

namespace fledge {

enum NormKind : int32_t { NO_NORM = 0, RMS = 1, LAYER = 2 };
enum Activation : int32_t { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU2 = 4, QUICK_GELU = 5, TANH = 6 };
enum NormOver : int32_t { EACH_HEAD = 0, ALL_HEADS = 1, OWN_WEIGHTS = 2 };
enum Parallel : int32_t { ONE_AFTER_THE_OTHER = 0, ONE_NORM = 1, TWO_NORMS = 2 };

struct Norm {
  int32_t kind;
  float eps;
  const float *weight, *bias;  // either may be null
};

struct Layer {
  Norm attention_before, attention_after, attention_residual, ffn_before, ffn_after, ffn_residual;
  Norm q_norm, k_norm;
  int32_t norm_over;   // what q and k are normalised over; OWN_WEIGHTS: each head, by weights [H, C] and [K, C]
  int32_t turned;      // channels that turn, 0: none
  const float *cos, *sin;  // [positions, turned / 2]
  Heads heads;
  Cache cache;
  Matrix qkv, out, up, down;  // up: gate and up side by side if `gated`; of a mixture the router, and no down
  Mixture mixture;
  int32_t activation, gated, parallel;
  float clip;  // queries, keys and values are cut off at ± this; 0: they are not
};

// What an adapter makes of outputs begin … begin + size of a product: x is multiplied by `before`, and y becomes
// factor · y + (x downᵀ) up + offset. Each may be null.
struct Change {
  int32_t begin, size, rank, padding;
  const float *before;  // [K]
  const float *down;    // [rank, K]
  const float *up;      // [rank, size]
  const float *factor, *offset;  // [size]
};

struct Changes {
  const Change* first;
  int64_t n;
};

// The maps of a layer, in the order in which an adapter has changes for them.
enum Map : int32_t { QKV = 0, OUT = 1, UP = 2, DOWN = 3, MAPS = 4 };  // UP of a mixture: its router

struct Adapter {
  const Changes* maps;     // [MAPS · layers + 1], the output's last
  const float *rows, *up;  // what is added to the embedding's rows: [V, rank] · [rank, D], or null
  int64_t rank;
};

struct Decoder {
  int32_t width, n_layers, hidden, vocab;
  const Layer* layers;
  const float* embedding;         // [V, D], or the output's panels if `embedding_in_panels`
  const float* position_table;    // [rows, D] or null
  int32_t embedding_in_panels, position_offset;
  float embedding_scale, logit_scale, logit_softcap;
  float padding;
  Norm input_norm, final_norm;
  Matrix output;
};

struct Step {
  int32_t n_tokens, n_logits;
  const int32_t *ids, *positions;
  const int32_t* const* tables;  // each token's block table
  const int32_t* wanted;         // [n_logits]: the tokens whose logits are asked for
  float* logits;                 // [n_logits, vocab]
  const Adapter* const* adapters;  // each token's, null for none; null if no token has one
};

// What a pass keeps between its parts; grows and stays.
struct Room {
  std::vector<float> x, inward, heads, mixed, hidden, out, last;
  Packed packed;
  Routed routed;
  std::vector<float> pairs;
  std::vector<std::vector<float>> scores;  // a thread's own
  std::vector<std::pair<int, int>> neighbours;  // first token and number of tokens that follow each other in a sequence
};

static inline void normalise(const Norm& norm, const float* x, float* y, int n) {
  if (norm.kind == NO_NORM) {
    if (x != y) std::memcpy(y, x, n * sizeof(float));
    return;
  }
  Floats sums{};
  const auto part = [&](const float* at, int i) { return load_part(at + i, n - i); };
  float mean = 0;
  if (norm.kind == LAYER) {
    for (int i = 0; i < n; i += LANES) sums = sums + part(x, i);
    mean = sum(sums) / n;
    sums = Floats{};
  }
  for (int i = 0; i < n; i += LANES) {
    const Floats v = first_lanes(part(x, i) - all(mean), n - i, 0.0f);
    sums = fma(v, v, sums);
  }
  const Floats r = all(1.0f / std::sqrt(sum(sums) / n + norm.eps));
  for (int i = 0; i < n; i += LANES) {
    Floats v = (part(x, i) - all(mean)) * r;
    if (norm.weight) v = v * part(norm.weight, i);
    if (norm.bias) v = v + part(norm.bias, i);
    store_part(y + i, v, n - i);
  }
}

static inline Floats activate(Floats x, int kind) {
  switch (kind) {
    case SILU: return x * sigmoid(x);
    case GELU: return x * all(0.5f) * (all(1.0f) + erf(x * all(0.70710678118654752f)));
    case GELU_TANH: {
      const Floats inner = all(0.7978845608028654f) * fma(x * x * x, all(0.044715f), x);
      return x * all(0.5f) * (all(1.0f) + tanh(inner));
    }
    case RELU: return if_less(x, all(0.0f), all(0.0f), x);
    case RELU2: return if_less(x, all(0.0f), all(0.0f), x * x);
    case QUICK_GELU: return x * sigmoid(x * all(1.702f));
    default: return tanh(x);
  }
}

// hidden [F] from up's outputs: [2F] if gated, else [F] in place
static inline void feed(const Layer& layer, float* h, int F) {
  for (int i = 0; i < F; i += LANES) {
    const int n = F - i;
    Floats v = activate(load_part(h + i, n), layer.activation);
    if (layer.gated) v = v * load_part(h + F + i, n);
    store_part(h + i, v, n);
  }
}

static inline void turn(const Layer& layer, float* x, int position) {
  const int half = layer.turned / 2;
  const float *cos = layer.cos + (int64_t)position * half, *sin = layer.sin + (int64_t)position * half;
  for (int c = 0; c < half; c++) {
    const float a = x[c], b = x[c + half];
    x[c] = a * cos[c] - b * sin[c];
    x[c + half] = b * cos[c] + a * sin[c];
  }
}

// Queries, keys and values of a token [(H + 2K) C]: normalised, cut off, turned, keys and values into the cache.
static inline void project(const Layer& layer, float* qkv, int position, const int32_t* table) {
  const Heads& heads = layer.heads;
  const int C = heads.channels, H = heads.n_heads, K = heads.n_kv_heads;
  if (layer.q_norm.kind != NO_NORM) {
    if (layer.norm_over == ALL_HEADS) {
      normalise(layer.q_norm, qkv, qkv, H * C);
      normalise(layer.k_norm, qkv + H * C, qkv + H * C, K * C);
    } else {
      for (int h = 0; h < H + K; h++) {
        Norm norm = h < H ? layer.q_norm : layer.k_norm;
        if (layer.norm_over == OWN_WEIGHTS && norm.weight) norm.weight += (h < H ? h : h - H) * C;
        normalise(norm, qkv + h * C, qkv + h * C, C);
      }
    }
  }
  if (layer.clip)
    for (int i = 0; i < (H + 2 * K) * C; i++) qkv[i] = qkv[i] < -layer.clip ? -layer.clip : qkv[i] > layer.clip ? layer.clip : qkv[i];
  if (layer.turned)
    for (int h = 0; h < H + K; h++) turn(layer, qkv + h * C, position);
  write_cache(layer.cache, heads, place(table, position), qkv + H * C, qkv + (H + K) * C);
}

// x += y, with the norms that stand after the sublayer and on the sum
static inline void join(const Norm& after, const Norm& residual, float* x, float* y, int n) {
  if (after.kind != NO_NORM) normalise(after, y, y, n);
  for (int i = 0; i < n; i += LANES) {
    const int there = n - i;
    store_part(x + i, load_part(x + i, there) + load_part(y + i, there), there);
  }
  if (residual.kind != NO_NORM) normalise(residual, x, x, n);
}

static inline const Adapter* adapter_of(const Step& step, int m) { return step.adapters ? step.adapters[m] : nullptr; }

// y += a · x
static inline void add(float* y, float a, const float* x, int n) {
  for (int i = 0; i < n; i += LANES) store_part(y + i, fma(all(a), load_part(x + i, n - i), load_part(y + i, n - i)), n - i);
}

static inline float dot(const float* a, const float* b, int n) {
  Floats sums{};
  for (int i = 0; i < n; i += LANES) sums = fma(load_part(a + i, n - i), load_part(b + i, n - i), sums);
  return sum(sums);
}

// What the adapter of token m makes of what a map reads, x [K].
static inline void change_input(const Adapter* adapter, int map, float* x, int K) {
  if (!adapter) return;
  const Changes& changes = adapter->maps[map];
  for (int64_t c = 0; c < changes.n; c++)
    if (const float* before = changes.first[c].before)
      for (int i = 0; i < K; i++) x[i] *= before[i];
}

// What the adapter of a token makes of what a map gave, y, of x [K].
static inline void change_output(const Adapter* adapter, int map, const float* x, int K, float* y) {
  if (!adapter) return;
  const Changes& changes = adapter->maps[map];
  for (int64_t c = 0; c < changes.n; c++) {
    const Change& change = changes.first[c];
    float* part = y + change.begin;
    if (change.factor)
      for (int i = 0; i < change.size; i++) part[i] *= change.factor[i];
    for (int r = 0; r < change.rank; r++)
      add(part, dot(change.down + (int64_t)r * K, x, K), change.up + (int64_t)r * change.size, change.size);
    if (change.offset)
      for (int i = 0; i < change.size; i++) part[i] += change.offset[i];
  }
}

static inline void embed(const Decoder& model, int id, int position, const Adapter* adapter, float* x) {
  const int D = model.width;
  if (model.embedding_in_panels) {
    const float* column = model.embedding + (int64_t)(id / PANEL) * D * PANEL + id % PANEL;
    for (int i = 0; i < D; i++) x[i] = column[(int64_t)i * PANEL];
  } else {
    std::memcpy(x, model.embedding + (int64_t)id * D, D * sizeof(float));
  }
  if (adapter && adapter->rows)
    for (int r = 0; r < adapter->rank; r++)
      add(x, adapter->rows[(int64_t)id * adapter->rank + r], adapter->up + (int64_t)r * D, D);
  if (model.embedding_scale != 1.0f)
    for (int i = 0; i < D; i++) x[i] *= model.embedding_scale;
  if (model.position_table) {
    const float* row = model.position_table + (int64_t)(position + model.position_offset) * D;
    for (int i = 0; i < D; i++) x[i] += row[i];
  }
  normalise(model.input_norm, x, x, D);
}

static void grow(std::vector<float>& room, int64_t n) {
  if ((int64_t)room.size() < n) room.resize(n + LANES);
}

static void prepare(const Decoder& model, const Step& step, Room& room, int n_threads) {
  const int64_t M = step.n_tokens, D = model.width;
  for (int l = 0; l < model.n_layers; l++) {
    const Layer& layer = model.layers[l];
    const Mixture& mixture = layer.mixture;
    grow(room.heads, M * layer.qkv.n_outputs), grow(room.mixed, M * layer.out.n_inputs);
    for (const Matrix* w : {&layer.qkv, &layer.out, &layer.up}) reserve(*w, M, room.packed);
    if (mixture.experts) {
      reserve(mixture, M, room.routed, room.packed, n_threads);
      grow(room.hidden, M * mixture.top_k * mixture.experts[0].up.n_outputs), grow(room.pairs, M * mixture.top_k * D);
    } else {
      reserve(layer.down, M, room.packed);
      grow(room.hidden, M * layer.up.n_outputs);
    }
  }
  grow(room.x, M * D), grow(room.inward, M * D), grow(room.out, M * D), grow(room.last, M * D);
  reserve(model.output, step.n_logits, room.packed);
  int longest = 0;
  for (int m = 0; m < M; m++) longest = std::max(longest, step.positions[m] + 1);
  room.scores.resize(n_threads);
  for (auto& scores : room.scores) grow(scores, (int64_t)QUERIES * score_room(longest + QUERIES));
  room.neighbours.clear();
  for (int m = 0; m < M; m++) {
    const bool next = m && step.tables[m] == step.tables[m - 1] && step.positions[m] == step.positions[m - 1] + 1;
    if (next && room.neighbours.back().second < QUERIES)
      room.neighbours.back().second++;
    else
      room.neighbours.push_back({m, 1});
  }
}

// What attention gives of the normalised tokens `inward`: out [M, D].
static void run_attention(Pool& pool, int rank, const Layer& layer, const Step& step, int maps, int D, Room& room) {
  const int M = step.n_tokens, wide = layer.qkv.n_outputs, C = layer.heads.channels, H = layer.heads.n_heads;
  const Share rows(M, rank, pool.n_threads);
  float *inward = room.inward.data(), *out = room.out.data(), *mixed = room.mixed.data();
  matmul(pool, rank, inward, D, layer.qkv, M, room.heads.data(), wide, room.packed);
  for (int m = rows.first; m < rows.last; m++) {
    float* qkv = room.heads.data() + (int64_t)m * wide;
    change_output(adapter_of(step, m), maps + QKV, inward + m * D, D, qkv);
    project(layer, qkv, step.positions[m], step.tables[m]);
  }
  pool.barrier();
  const int groups = (int)room.neighbours.size();
  const Share tasks(groups * H, rank, pool.n_threads);
  for (int task = tasks.first; task < tasks.last; task++) {  // head after head, whose keys and values stay in the cache
    const auto [m, n] = room.neighbours[task % groups];
    const int h = task / groups;
    attend_neighbours(n, room.heads.data() + (int64_t)m * wide + h * C, wide, layer.cache, layer.heads, h,
                               step.tables[m], step.positions[m], room.scores[rank],
                               mixed + (int64_t)m * H * C + h * C, H * C);
  }
  if (step.adapters) {
    pool.barrier();
    for (int m = rows.first; m < rows.last; m++)
      change_input(adapter_of(step, m), maps + OUT, mixed + (int64_t)m * H * C, H * C);
  }
  matmul(pool, rank, mixed, H * C, layer.out, M, out, D, room.packed);
  for (int m = rows.first; m < rows.last; m++)
    change_output(adapter_of(step, m), maps + OUT, mixed + (int64_t)m * H * C, H * C, out + m * D);
}

// What a dense feed-forward gives of `inward`: fed [M, D].
static void run_dense(Pool& pool, int rank, const Layer& layer, const Step& step, int maps, int D, Room& room,
                      float* fed) {
  const int M = step.n_tokens, F = layer.down.n_inputs;
  const int64_t wide = layer.up.n_outputs;
  const Share rows(M, rank, pool.n_threads);
  const float* inward = room.inward.data();
  float* hidden = room.hidden.data();
  matmul(pool, rank, inward, D, layer.up, M, hidden, wide, room.packed);
  for (int m = rows.first; m < rows.last; m++) {
    change_output(adapter_of(step, m), maps + UP, inward + m * D, D, hidden + m * wide);
    feed(layer, hidden + m * wide, F);
    change_input(adapter_of(step, m), maps + DOWN, hidden + m * wide, F);
  }
  matmul(pool, rank, hidden, wide, layer.down, M, fed, D, room.packed);
  for (int m = rows.first; m < rows.last; m++)
    change_output(adapter_of(step, m), maps + DOWN, hidden + m * wide, F, fed + m * D);
}

// What a mixture gives of `inward`: fed [M, D]. All experts' products of a kind are computed between two barriers.
static void run_experts(Pool& pool, int rank, const Layer& layer, const Step& step, int maps, int D, Room& room,
                        float* fed) {
  const Mixture& mixture = layer.mixture;
  Routed& routed = room.routed;
  const int M = step.n_tokens, k = mixture.top_k, stride = score_stride(mixture);
  const int F = mixture.experts[0].down.n_inputs, n = pool.n_threads;
  const int64_t wide = mixture.experts[0].up.n_outputs;
  const Share rows(M, rank, n), pairs(M * k, rank, n);
  const float* inward = room.inward.data();
  float* hidden = room.hidden.data();
  matmul(pool, rank, inward, D, layer.up, M, routed.scores.data(), stride, room.packed);
  for (int m = rows.first; m < rows.last; m++) {
    float* scores = routed.scores.data() + (int64_t)m * stride;
    change_output(adapter_of(step, m), maps + UP, inward + m * D, D, scores);
    choose(mixture, scores, routed.ranked[rank].data(), &routed.choices[(int64_t)m * k]);
  }
  pool.barrier();
  if (rank == 0) number_pairs(mixture, M, routed);
  pool.barrier();
  const auto token = [&](int pair) { return inward + (int64_t)routed.tokens[pair] * D; };
  pack_pairs(mixture, routed, &Expert::up, pairs, token, room.packed);
  pool.barrier();
  pair_products(mixture, routed, &Expert::up, room.packed, hidden, wide, rank, n);
  pool.barrier();
  const auto fed_through = [&](int pair) {
    feed(layer, hidden + pair * wide, F);
    return hidden + pair * wide;
  };
  pack_pairs(mixture, routed, &Expert::down, pairs, fed_through, room.packed);
  pool.barrier();
  pair_products(mixture, routed, &Expert::down, room.packed, room.pairs.data(), D, rank, n);
  pool.barrier();
  for (int m = rows.first; m < rows.last; m++)
    sum_pairs(mixture, &routed.choices[(int64_t)m * k], room.pairs.data(), D, fed + m * D);
}

static void run_layer(Pool& pool, int rank, const Decoder& model, const Layer& layer, const Step& step, Room& room) {
  const int D = model.width, maps = MAPS * (int)(&layer - model.layers);
  const Share rows(step.n_tokens, rank, pool.n_threads);
  const bool beside = layer.parallel != ONE_AFTER_THE_OTHER;
  float *x = room.x.data(), *inward = room.inward.data(), *out = room.out.data();
  for (int m = rows.first; m < rows.last; m++) normalise(layer.attention_before, x + m * D, inward + m * D, D);
  run_attention(pool, rank, layer, step, maps, D, room);
  for (int m = rows.first; m < rows.last; m++) {
    if (!beside) join(layer.attention_after, layer.attention_residual, x + m * D, out + m * D, D);
    if (layer.parallel != ONE_NORM) normalise(layer.ffn_before, x + m * D, inward + m * D, D);
  }
  float* fed = beside ? room.last.data() : out;
  (layer.mixture.experts ? run_experts : run_dense)(pool, rank, layer, step, maps, D, room, fed);
  for (int m = rows.first; m < rows.last; m++) {
    float *row = x + m * D, *y = fed + m * D;
    if (beside)
      for (int i = 0; i < D; i++) y[i] += out[m * D + i];
    const Norm& after = beside ? layer.attention_after : layer.ffn_after;
    join(after, beside ? layer.attention_residual : layer.ffn_residual, row, y, D);
  }
}

// `prepare` comes first.
static void run_step(Pool& pool, int rank, const Decoder& model, const Step& step, Room& room) {
  const int D = model.width;
  const Share rows(step.n_tokens, rank, pool.n_threads);
  for (int m = rows.first; m < rows.last; m++)
    embed(model, step.ids[m], step.positions[m], adapter_of(step, m), room.x.data() + (int64_t)m * D);
  for (int l = 0; l < model.n_layers; l++) run_layer(pool, rank, model, model.layers[l], step, room);
  pool.barrier();
  const Share wanted(step.n_logits, rank, pool.n_threads);
  for (int i = wanted.first; i < wanted.last; i++) {
    float* y = room.last.data() + (int64_t)i * D;
    normalise(model.final_norm, room.x.data() + (int64_t)step.wanted[i] * D, y, D);
    if (model.logit_scale != 1.0f)
      for (int d = 0; d < D; d++) y[d] *= model.logit_scale;
  }
  if (!step.n_logits) return;
  matmul(pool, rank, room.last.data(), D, model.output, step.n_logits, step.logits, model.vocab, room.packed);
  for (int i = wanted.first; i < wanted.last; i++)
    change_output(adapter_of(step, step.wanted[i]), MAPS * model.n_layers, room.last.data() + (int64_t)i * D, D,
                  step.logits + (int64_t)i * model.vocab);
  if (model.logit_softcap > 0)
    for (int i = wanted.first; i < wanted.last; i++)
      for (int n = 0; n < model.vocab; n++) {
        float* logit = step.logits + (int64_t)i * model.vocab + n;
        *logit = std::tanh(*logit / model.logit_softcap) * model.logit_softcap;
      }
}

}  // namespace fledge
