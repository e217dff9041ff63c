// A mixture of experts: which rows each expert takes, the products of all experts at once, the weighted sum.
//
// M tokens, E experts, k of them a token. A pair is a token and one of its experts. Pairs lie expert by expert, so that
// an expert's rows stand together and its weights are read once; what a pair gives depends on its token alone, and a
// token's pairs are added in rising order of experts: the same bits in any company.
#pragma once

#include <utility>

#include "attention.h"
#include "matmul.h"

namespace fledge {

struct Expert {
  Matrix up, down;  // up: gate and up side by side if the layer is gated
};

struct Mixture {
  const Expert* experts;  // null: no mixture
  int32_t n_experts, top_k;
  int32_t renormalise, padding;  // a token's weights sum to 1
};

struct Choice {
  int32_t expert, pair;
  float weight;
};

struct Routed {
  std::vector<float> scores;    // [M, E up to whole lanes]
  std::vector<Choice> choices;  // [M, k], of a token by rising expert
  std::vector<int> begins;      // [E + 1]: each expert's first pair
  std::vector<int> tokens;      // [M k]: each pair's token
  std::vector<std::vector<std::pair<float, int>>> ranked;  // a thread's own, [E]
};

static inline int score_stride(const Mixture& mixture) { return round_up(mixture.n_experts, LANES); }

static void reserve(const Mixture& mixture, int64_t M, Routed& routed, Packed& packed, int n_threads) {
  const size_t pairs = M * mixture.top_k, E = mixture.n_experts;
  if (routed.scores.size() < (size_t)M * score_stride(mixture)) routed.scores.resize(M * score_stride(mixture));
  if (routed.choices.size() < pairs) routed.choices.resize(pairs);
  if (routed.tokens.size() < pairs) routed.tokens.resize(pairs);
  if (routed.begins.size() < E + 1) routed.begins.resize(E + 1);
  if (routed.ranked.size() < (size_t)n_threads) routed.ranked.resize(n_threads);
  for (auto& ranked : routed.ranked)
    if (ranked.size() < E) ranked.resize(E);
  for (size_t e = 0; e < E; e++) {
    reserve(mixture.experts[e].up, pairs, packed);
    reserve(mixture.experts[e].down, pairs, packed);
  }
}

// A token's experts, by its router's scores [E up to whole lanes], which are used up. Equal probabilities are ranked as
// torch.topk ranks them, by the same algorithms of the standard library.
static void choose(const Mixture& mixture, float* scores, std::pair<float, int>* ranked, Choice* chosen) {
  const int E = mixture.n_experts, k = mixture.top_k;
  const float total = soften(scores, E, 0.0f);
  for (int e = 0; e < E; e++) ranked[e] = {scores[e] / total, e};
  const auto before = [](const auto& a, const auto& b) {
    return (std::isnan(a.first) && !std::isnan(b.first)) || a.first > b.first;
  };
  if ((int64_t)k * 64 <= E) {
    std::partial_sort(ranked, ranked + k, ranked + E, before);
  } else {
    std::nth_element(ranked, ranked + k - 1, ranked + E, before);
    std::sort(ranked, ranked + k - 1, before);
  }
  float sum = 0;
  for (int j = 0; j < k; j++) sum += ranked[j].first;
  std::sort(ranked, ranked + k, [](const auto& a, const auto& b) { return a.second < b.second; });
  const float whole = mixture.renormalise ? sum : 1.0f;
  for (int j = 0; j < k; j++) chosen[j] = {ranked[j].second, 0, ranked[j].first / whole};
}

// Gives every choice its pair: an expert's are numbered in the order of tokens.
static void number_pairs(const Mixture& mixture, int M, Routed& routed) {
  const int E = mixture.n_experts, k = mixture.top_k;
  int* begins = routed.begins.data();
  std::fill(begins, begins + E + 1, 0);
  for (int i = 0; i < M * k; i++) begins[routed.choices[i].expert]++;
  for (int e = 1; e <= E; e++) begins[e] += begins[e - 1];  // where an expert ends, until its pairs have counted down
  for (int i = M * k - 1; i >= 0; i--) {
    Choice& choice = routed.choices[i];
    choice.pair = --begins[choice.expert];
    routed.tokens[choice.pair] = i / k;
  }
}

// A thread's share of the pairs as the product with a map reads them; `row(pair)` is what the map is given.
template <class RowOf>
static void pack_pairs(const Mixture& mixture, const Routed& routed, Matrix Expert::*map, Share pairs, const RowOf& row,
                       Packed& to) {
  for (int e = 0; e < mixture.n_experts; e++) {
    const Tiles tiles(routed.begins[e], routed.begins[e + 1]);
    const int last = std::min(pairs.last, tiles.end);
    for (int p = std::max(pairs.first, tiles.begin); p < last; p++)
      pack_row(row(p), p, mixture.experts[e].*map, tiles, to);
  }
}

// A thread's share of every expert's product with its pairs: y [M k, outputs] with rows `stride` apart.
static void pair_products(const Mixture& mixture, const Routed& routed, Matrix Expert::*map, const Packed& x, float* y,
                          int64_t stride, int rank, int n_threads) {
  for (int e = 0; e < mixture.n_experts; e++) {
    const Tiles tiles(routed.begins[e], routed.begins[e + 1]);
    const Matrix& w = mixture.experts[e].*map;
    if (tiles.count) product(w, x, tiles, y, stride, Share(panels_of(w), rank, n_threads));
  }
}

// y [D]: the sum of what a token's pairs gave [M k, D], each times its weight.
static void sum_pairs(const Mixture& mixture, const Choice* chosen, const float* pairs, int D, float* y) {
  for (int i = 0; i < D; i += LANES) {
    Floats total{};
    for (int j = 0; j < mixture.top_k; j++)
      total = fma(load_part(pairs + (int64_t)chosen[j].pair * D + i, D - i), all(chosen[j].weight), total);
    store_part(y + i, total, D - i);
  }
}

}  // namespace fledge
