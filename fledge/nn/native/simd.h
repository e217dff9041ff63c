// Sixteen floats at a time. GCC's vector types compile for any processor; FMA and VNNI are used where there are any.
//
// Every function here computes each lane for itself or adds lanes in one fixed order, so that a result depends on its
// inputs and the processor's kind alone: never on how many rows, threads or tokens are computed beside it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace fledge {

constexpr int LANES = 16;
static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

static inline Floats load(const float* from) {
  Floats v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
static inline void store(float* to, Floats v) { std::memcpy(to, &v, sizeof v); }
static inline Floats all(float x) { return Floats{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline Ints all(int32_t x) { return Ints{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline Floats load_part(const float* from, int n) {  // the first n lanes, zeros in the others
  if (n >= LANES) return load(from);
  Floats v{};
  std::memcpy(&v, from, n * sizeof(float));
  return v;
}
static inline void store_part(float* to, Floats v, int n) {
  if (n >= LANES) return store(to, v);
  std::memcpy(to, &v, n * sizeof(float));
}
static inline Floats first_lanes(Floats v, int n, float others) {
  for (int i = n; i < LANES; i++) v[i] = others;
  return v;
}

static inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c;
#endif
}
static inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
static inline Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }
static inline Ints to_ints(Floats v) { return __builtin_convertvector(v, Ints); }

// What one register holds, for loops that must not leave the registers: the compiler keeps wider vectors in memory.
#if defined(__AVX512F__)
constexpr int WIDE = 16;
#else
constexpr int WIDE = 8;
#endif
typedef float Wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t WideInts __attribute__((vector_size(4 * WIDE)));

static inline Wide wide(float x) { return x - Wide{}; }
static inline WideInts wide(int32_t x) { return x - WideInts{}; }
static inline Wide load_wide(const float* from) {
  Wide v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
static inline WideInts load_wide_ints(const void* from) {
  WideInts v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
#if !defined(__AVX512F__)
static inline Wide fma(Wide a, Wide b, Wide c) {
#if defined(__FMA__)
  return (Wide)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
#endif

// Σ over four products of bytes, added to each lane: unsigned by signed.
static inline WideInts dot4(WideInts sum, WideInts unsigned4, WideInts signed4) {
#if defined(__AVX512VNNI__)
  return (WideInts)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned4, (__m512i)signed4);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i u = (__m256i)unsigned4, s = (__m256i)signed4;  // even and odd ones as 16 bits, whose sums are exact
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return sum + (WideInts)even + (WideInts)odd;
#else
  uint8_t a[4 * WIDE];
  int8_t b[4 * WIDE];
  std::memcpy(a, &unsigned4, sizeof a);
  std::memcpy(b, &signed4, sizeof b);
  for (int i = 0; i < WIDE; i++)
    for (int j = 0; j < 4; j++) sum[i] += a[4 * i + j] * b[4 * i + j];
  return sum;
#endif
}

// Σ of the lanes as a tree: 8 + 8, 4 + 4, ...
static inline float sum(Floats v) {
#if defined(__AVX__)
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                     _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
#else
  __m256 halves[2];
  std::memcpy(halves, &v, sizeof halves);
  const __m256 eight = _mm256_add_ps(halves[0], halves[1]);
#endif
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
#else
  float part[LANES];
  store(part, v);
  for (int n = LANES / 2; n; n /= 2)
    for (int i = 0; i < n; i++) part[i] += part[i + n];
  return part[0];
#endif
}
// The sums of sixteen vectors, each by the same tree as `sum`.
static inline Floats sums(const Floats (&v)[LANES]) {
#if defined(__AVX512F__)
  __m512 eights[8], fours[4], twos[2];
  for (int i = 0; i < 8; i++)
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4((__m512)v[i], (__m512)v[i + 8], 0x44),
                              _mm512_shuffle_f32x4((__m512)v[i], (__m512)v[i + 8], 0xEE));
  for (int i = 0; i < 4; i++)
    fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eights[i], eights[i + 4], 0x88),
                             _mm512_shuffle_f32x4(eights[i], eights[i + 4], 0xDD));
  for (int i = 0; i < 2; i++)
    twos[i] = _mm512_add_ps(_mm512_shuffle_ps(fours[i], fours[i + 2], 0x44),
                            _mm512_shuffle_ps(fours[i], fours[i + 2], 0xEE));
  const __m512 ones = _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], 0x88),
                                    _mm512_shuffle_ps(twos[0], twos[1], 0xDD));
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  return (Floats)_mm512_permutexvar_ps(order, ones);
#else
  Floats all_of;
  for (int i = 0; i < LANES; i++) all_of[i] = sum(v[i]);
  return all_of;
#endif
}
static inline float largest(Floats v) {
  float best = v[0];
  for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x: x = n ln 2 + r, a polynomial of degree 5 in r (Cephes' expf, two roundings of ln 2), n into the exponent.
// What is no number stays none, so that broken weights are seen in the logits.
static inline Floats exp(Floats given) {
  const Floats x = max(min(given, all(88.3762626647949f)), all(-87.3365447504019f));
  const Floats shifted = fma(x, all(1.44269504088896341f), all(12582912.0f));  // 1.5 · 2^23 rounds to whole numbers
  const Floats n = shifted - all(12582912.0f);
  Floats r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Floats p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r + all(1.0f));
  const Ints exponent = (to_ints(n) + 127) << 23;
  Floats power;
  std::memcpy(&power, &exponent, sizeof power);
  return given == given ? p * power : given;
}

static inline Floats sigmoid(Floats x) { return all(1.0f) / (all(1.0f) + exp(-x)); }

// tanh: x + x³ P(x²) near zero (Cephes' tanhf), 1 - 2 / (e^2x + 1) elsewhere
static inline Floats tanh(Floats x) {
  const Floats size = max(x, -x), square = x * x;
  Floats p = all(-5.70498872745e-3f);
  p = fma(p, square, all(2.06390887954e-2f));
  p = fma(p, square, all(-5.37397155531e-2f));
  p = fma(p, square, all(1.33314422036e-1f));
  p = fma(p, square, all(-3.33332819422e-1f));
  const Floats near = fma(p * square, x, x);
  Floats far = all(1.0f) - all(2.0f) / (exp(size + size) + all(1.0f));
  far = x < 0.0f ? -far : far;
  return size < 0.625f ? near : far;
}

// erf: x P(x²) up to 1, 1 - e^(-x²) Q(1/x²) / x beyond (Cephes' erff and erfcf, up to 2 and beyond 2)
static inline Floats erf(Floats x) {
  const Floats size = max(x, -x), square = x * x;
  Floats p = all(7.853861353153693e-5f);
  p = fma(p, square, all(-8.010193625184903e-4f));
  p = fma(p, square, all(5.188327685732524e-3f));
  p = fma(p, square, all(-2.685381193529856e-2f));
  p = fma(p, square, all(1.128358514861418e-1f));
  p = fma(p, square, all(-3.761262582423300e-1f));
  p = fma(p, square, all(1.128379165726710f));
  const Floats near = x * p;
  const Floats q = all(1.0f) / max(size, all(1.0f)), y = q * q;
  Floats a = all(2.326819970068386e-2f);
  for (float c : {-1.387039388740657e-1f, 3.687424674597105e-1f, -5.824733027278666e-1f, 6.210004621745983e-1f,
                  -4.944515323274145e-1f, 3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f})
    a = fma(a, y, all(c));
  Floats b = all(-1.047766399936249e+1f);
  for (float c : {1.297719955372516e+1f, -7.495518717768503e+0f, 2.921019019210786e+0f, -1.015265279202700e+0f,
                  4.218463358204948e-1f, -2.820767439740514e-1f, 5.641895067754075e-1f})
    b = fma(b, y, all(c));
  const Floats tail = exp(-square) * q * (size < 2.0f ? a : b);
  const Floats far = x < 0.0f ? tail - all(1.0f) : all(1.0f) - tail;
  return size < 1.0f ? near : far;
}

}  // namespace fledge
