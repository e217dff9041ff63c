// Sixteen floats at a time. GCC's vector types compile for any processor; AVX2, AVX-512 and VNNI are used where there
// are any.
//
// Every function here computes each lane for itself or adds lanes in one fixed order, so that a result depends on its
// inputs and the processor's kind alone: never on how many rows, threads or tokens are computed beside it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fledge {

constexpr int LANES = 16;
static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define FLEDGE_AVX2
struct Floats {  // two halves: GCC keeps its own vectors of this size in memory where registers are half as wide
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};
static inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
static inline void store(float* to, Floats v) { _mm256_storeu_ps(to, v.a), _mm256_storeu_ps(to + 8, v.b); }
static inline Ints load_ints(const void* from) {
  return {_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)from + 1)};
}
static inline void store_ints(void* to, Ints v) {
  _mm256_storeu_si256((__m256i*)to, v.a), _mm256_storeu_si256((__m256i*)to + 1, v.b);
}
static inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Ints all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline Floats operator-(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}
static inline Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline Ints operator-(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline Ints operator&(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline Ints operator<<(Ints x, int n) { return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)}; }
static inline Ints operator>>(Ints x, int n) { return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)}; }
static inline Floats fma(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
// As `x > y ? x : y`: where one is no number, y.
static inline Floats max(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline Floats min(Floats x, Floats y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline Floats to_floats(Ints v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
static inline Ints to_ints(Floats v) { return {_mm256_cvttps_epi32(v.a), _mm256_cvttps_epi32(v.b)}; }
static inline Floats if_less(Floats x, Floats y, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
static inline Floats if_number(Floats x, Floats yes, Floats no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, x.a, _CMP_ORD_Q)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, x.b, _CMP_ORD_Q))};
}
static inline Floats widened(const int8_t* from) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(from + 8))))};
}
// The lowest byte of each lane, whose number fits int8.
static inline void store_bytes(int8_t* to, Ints v) {
  const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(v.a), _mm256_extracti128_si256(v.a, 1));
  const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(v.b), _mm256_extracti128_si256(v.b, 1));
  _mm_storeu_si128((__m128i*)to, _mm_packs_epi16(low, high));
}
// Σ of the lanes as a tree: 8 + 8, 4 + 4, ...
static inline float sum(Floats v) {
  const __m256 eight = _mm256_add_ps(v.a, v.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
#else
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
static inline Ints load_ints(const void* from) {
  Ints v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
static inline void store_ints(void* to, Ints v) { std::memcpy(to, &v, sizeof v); }

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
static inline Floats if_less(Floats x, Floats y, Floats yes, Floats no) { return x < y ? yes : no; }
static inline Floats if_number(Floats x, Floats yes, Floats no) { return x == x ? yes : no; }
static inline Floats widened(const int8_t* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#else
  Floats v;
  for (int i = 0; i < LANES; i++) v[i] = from[i];
  return v;
#endif
}

// The lowest byte of each lane.
static inline void store_bytes(int8_t* to, Ints v) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < LANES; i++) to[i] = (int8_t)v[i];
#endif
}

// Σ of the lanes as a tree: 8 + 8, 4 + 4, ...
static inline float sum(Floats v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                                     _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1)));
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
#endif

static inline Floats load_part(const float* from, int n) {  // the first n lanes, zeros in the others
  if (n >= LANES) return load(from);
  float part[LANES] = {};
  std::memcpy(part, from, n * sizeof(float));
  return load(part);
}
static inline void store_part(float* to, Floats v, int n) {
  if (n >= LANES) return store(to, v);
  float part[LANES];
  store(part, v);
  std::memcpy(to, part, n * sizeof(float));
}
static inline Floats first_lanes(Floats v, int n, float others) {
  if (n >= LANES) return v;
  float part[LANES];
  store(part, v);
  for (int i = n; i < LANES; i++) part[i] = others;
  return load(part);
}
static inline float largest(Floats v) {
  float part[LANES];
  store(part, v);
  float best = part[0];
  for (int i = 1; i < LANES; i++) best = part[i] > best ? part[i] : best;
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
  const Ints exponent = (to_ints(n) + all(127)) << 23;
  Floats power;
  std::memcpy(&power, &exponent, sizeof power);
  return if_number(given, p * power, given);
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
  far = if_less(x, all(0.0f), -far, far);
  return if_less(size, all(0.625f), near, far);
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
  const Floats tail = exp(-square) * q * if_less(size, all(2.0f), a, b);
  const Floats far = if_less(x, all(0.0f), tail - all(1.0f), all(1.0f) - tail);
  return if_less(size, all(1.0f), near, far);
}

}  // namespace fledge
