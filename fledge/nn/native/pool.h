// Threads that run one function together and meet at barriers. The caller is thread 0.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fledge {

static inline void pause_a_moment() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int n) : n_threads(n) {
    for (int rank = 1; rank < n; rank++) workers.emplace_back([this, rank] { work(rank); });
  }
  ~Pool() {
    stopped = true;
    generation.fetch_add(1);
    generation.notify_all();
    for (auto& worker : workers) worker.join();
  }

  const int n_threads;

  // Runs `act(rank)` on every thread; returns when all have.
  void run(const std::function<void(int)>& act) {
    if (n_threads == 1) return act(0);
    task = &act;
    generation.fetch_add(1);
    generation.notify_all();
    act(0);
    barrier();
  }

  // Every thread waits here for all others: briefly by spinning, then letting others run.
  void barrier() {
    if (n_threads == 1) return;
    const unsigned now = phase.load(std::memory_order_acquire);
    if (arrivals.fetch_add(1, std::memory_order_acq_rel) + 1 == n_threads) {
      arrivals.store(0, std::memory_order_relaxed);
      phase.fetch_add(1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase.load(std::memory_order_acquire) == now; spins++) {
      if (spins < SPINS)
        pause_a_moment();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int SPINS = 4000;

  void work(int rank) {
    unsigned seen = 0;
    while (true) {
      for (int spins = 0; generation.load(std::memory_order_acquire) == seen && spins < SPINS; spins++) pause_a_moment();
      generation.wait(seen, std::memory_order_acquire);
      seen = generation.load(std::memory_order_acquire);
      if (stopped) return;
      (*task)(rank);
      barrier();
    }
  }

  std::vector<std::thread> workers;
  const std::function<void(int)>* task = nullptr;
  std::atomic<unsigned> generation{0}, phase{0};
  std::atomic<int> arrivals{0};
  std::atomic<bool> stopped{false};
};

// The share of `n` things that thread `rank` of `of` does: [first, last).
struct Share {
  int first, last;
  Share(int n, int rank, int of) : first((int64_t)n * rank / of), last((int64_t)n * (rank + 1) / of) {}
};

}  // namespace fledge
