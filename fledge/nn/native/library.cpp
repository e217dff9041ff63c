// The functions that Python calls (fledge/nn/native/library.py), each with plain pointers.
#include <mutex>
#include <new>

#include "noise.h"
#include "step.h"

using namespace fledge;

namespace {

struct Context {
  Pool pool;
  Room room;
  std::mutex one_caller;
  explicit Context(int n_threads) : pool(n_threads) {}
};

}  // namespace

extern "C" {

void* fledge_new(int n_threads) { return new Context(n_threads); }
void fledge_free(void* context) { delete (Context*)context; }

// y [M, N] = x [M, K] by w. 0, or -1: too little memory.
int fledge_matmul(void* context, const float* x, const Matrix* w, int M, float* y) try {
  auto& with = *(Context*)context;
  const std::lock_guard lock(with.one_caller);
  reserve(*w, M, with.room.packed);
  with.pool.run(
      [&](int rank) { matmul(with.pool, rank, x, w->n_inputs, *w, M, y, w->n_outputs, with.room.packed); });
  return 0;
} catch (const std::bad_alloc&) {
  return -1;
}

// One forward pass over a step's tokens. 0, or -1: too little memory.
int fledge_step(void* context, const Decoder* model, const Step* step) try {
  auto& with = *(Context*)context;
  const std::lock_guard lock(with.one_caller);
  prepare(*model, *step, with.room, with.pool.n_threads);
  with.pool.run([&](int rank) { run_step(with.pool, rank, *model, *step, with.room); });
  return 0;
} catch (const std::bad_alloc&) {
  return -1;
}

int64_t fledge_contenders(const float* scores, int64_t n, int64_t best_id, double temperature, uint64_t key, int64_t* ids) {
  return contenders(scores, n, best_id, temperature, key, ids);
}

// Bytes of each struct, for the Python side to compare with its own.
void fledge_sizes(int32_t* sizes) {
  const int32_t all[] = {sizeof(Matrix), sizeof(Norm), sizeof(Heads), sizeof(Cache), sizeof(Expert), sizeof(Mixture),
                         sizeof(Layer), sizeof(Change), sizeof(Changes), sizeof(Adapter), sizeof(Decoder), sizeof(Step)};
  std::memcpy(sizes, all, sizeof all);
}
}
