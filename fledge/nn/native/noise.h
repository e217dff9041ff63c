// Which tokens can win when Gumbel noise is added to their scores (fledge/engine/noise.py says what the noise is).
//
// A token whose uniform number is below what it needs to beat the best sum so far is passed over; the others, some tens
// of a vocabulary, are left to the caller, who computes their noise with his own logarithms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace fledge {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15, FIRST = 0xBF58476D1CE4E5B9, SECOND = 0x94D049BB133111EB;
constexpr double SLACK = 1e-6;  // more than logarithms differ
constexpr int STEPS = 4, LOWEST = -4, HIGHEST = 40;

static inline uint64_t word53(uint64_t key, uint64_t id) {
  uint64_t word = id * GOLDEN + key;
  word ^= word >> 30;
  word *= FIRST;
  word ^= word >> 27;
  word *= SECOND;
  return (word ^ word >> 31) >> 11;
}

// The least 53-bit number whose noise reaches LOWEST + j / STEPS, less a little.
struct Thresholds {
  uint64_t least[(HIGHEST - LOWEST) * STEPS + 2];
  Thresholds() {
    for (int j = 0; j <= (HIGHEST - LOWEST) * STEPS + 1; j++) {
      const double need = LOWEST + (double)j / STEPS;
      const double u = std::exp(-std::exp(-need)) * 9007199254740992.0;
      least[j] = j == 0 || u < 4096.0 ? 0 : (uint64_t)(u * (1 - 1e-12)) - 2;
    }
  }
};

// Of `n` float32 scores, v = (score - best) / temperature in float64: the ids that may win, rising; gives how many.
static int64_t contenders(const float* scores, int64_t n, int64_t best_id, double temperature, uint64_t key,
                          int64_t* ids) {
  static const Thresholds thresholds;
  const auto gumbel = [](uint64_t word) { return -std::log(-std::log(std::max((double)word, 0.5) * 0x1p-53)); };
  const double best = scores[best_id];
  double lead = gumbel(word53(key, best_id)) - SLACK;
  int64_t count = 0;
  constexpr int BLOCK_IDS = 256;
  uint64_t words[BLOCK_IDS];
  int32_t need[BLOCK_IDS];
  for (int64_t begin = 0; begin < n; begin += BLOCK_IDS) {
    const int here = (int)std::min<int64_t>(BLOCK_IDS, n - begin);
    for (int i = 0; i < here; i++) words[i] = word53(key, begin + i);
    const double lowest = (double)LOWEST, top = (double)(HIGHEST - LOWEST) * STEPS, by = 1 / temperature;
    for (int i = 0; i < here; i++) {
      const double d = (lead - ((double)scores[begin + i] - best) * by - lowest) * STEPS;
      need[i] = (int32_t)std::min(std::max(d, 0.0), top);
    }
    for (int i = 0; i < here; i++) {
      if (words[i] < thresholds.least[need[i]]) continue;
      const double v = ((double)scores[begin + i] - best) / temperature, total = v + gumbel(words[i]);
      if (total < lead) continue;
      ids[count++] = begin + i;
      lead = std::max(lead, total - SLACK);
    }
  }
  return count;
}

}  // namespace fledge
