// The functions that Python calls (fledge/nn/native/library.py), each with plain pointers.
#include "noise.h"
#include "step.h"

using namespace fledge;

namespace {

struct Context {
  Pool pool;
  Room room;
  explicit Context(int n_threads) : pool(n_threads) {}
};

}  // namespace

extern "C" {

void* fledge_new(int n_threads) { return new Context(n_threads); }
void fledge_free(void* context) { delete (Context*)context; }

// y [M, N] = x [M, K] by w
void fledge_matmul(void* context, const float* x, const Matrix* w, int M, float* y) {
  auto& [pool, room] = *(Context*)context;
  pool.run([&](int rank) { matmul(pool, rank, x, w->n_inputs, *w, M, y, w->n_outputs, room.packed); });
}

void fledge_step(void* context, const Decoder* model, const Step* step) {
  auto& [pool, room] = *(Context*)context;
  pool.run([&](int rank) { run_step(pool, rank, *model, *step, room); });
}

int64_t fledge_contenders(const float* scores, int64_t n, int64_t best_id, double temperature, uint64_t key, int64_t* ids) {
  return contenders(scores, n, best_id, temperature, key, ids);
}

// Bytes of each struct, for the Python side to compare with its own.
void fledge_sizes(int32_t* sizes) {
  const int32_t all[] = {sizeof(Matrix), sizeof(Norm), sizeof(Heads), sizeof(Cache), sizeof(Layer), sizeof(Decoder), sizeof(Step)};
  std::memcpy(sizes, all, sizeof all);
}
}
