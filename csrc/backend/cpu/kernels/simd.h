// Sixteen float lanes on every instruction level: one AVX-512 register or two AVX2 ones. Just what the kernels need.
//
// Everything is named; nothing contracts. Partial loads and stores touch only the first `count` lanes' memory.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace paceline::cpu::PACELINE_ISA {

constexpr int kLanes = 16;
#if defined(PACELINE_ISA_avx512_bf16)
constexpr bool kMultipliesBytes = true;  // in one instruction, VNNI's
#else
constexpr bool kMultipliesBytes = false;
#endif

#if defined(PACELINE_ISA_avx2)

struct F32 {
  __m256 low, high;
};

static inline __m256 low_half(F32 a) { return a.low; }
static inline __m256 high_half(F32 a) { return a.high; }
static inline F32 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }
static inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline F32 load_first(const float* p, int count) {
  return {_mm256_maskload_ps(p, first_lanes(count)), _mm256_maskload_ps(p + 8, first_lanes(count - 8))};
}
static inline void store_first(float* p, int count, F32 a) {
  _mm256_maskstore_ps(p, first_lanes(count), a.low), _mm256_maskstore_ps(p + 8, first_lanes(count - 8), a.high);
}
static inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
static inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
static inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
static inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
static inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
static inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
static inline F32 select_first(int count, F32 a, F32 b) {  // a in the first `count` lanes, b in the others
  return {_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(first_lanes(count))),
          _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(first_lanes(count - 8)))};
}
static inline __m256 scaled(__m256 x, __m256 n) {  // x 2^n, n integral, the result normal
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
static inline F32 scaled(F32 x, F32 n) { return {scaled(x.low, n.low), scaled(x.high, n.high)}; }
static inline F32 round_to_integer(F32 a) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
}
// A register of 16 bf16 pairs: element 0 in the low half of each 32 bits.
static inline __m256 even(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
static inline __m256 odd(__m256i pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(int(0xffff0000)))); }
static inline __m256i pairs_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline F32 load_even(const uint32_t* p) { return {even(pairs_at(p)), even(pairs_at(p + 8))}; }
static inline F32 load_odd(const uint32_t* p) { return {odd(pairs_at(p)), odd(pairs_at(p + 8))}; }
static inline F32 even_of(F32 a) { return {even(_mm256_castps_si256(a.low)), even(_mm256_castps_si256(a.high))}; }
static inline F32 odd_of(F32 a) { return {odd(_mm256_castps_si256(a.low)), odd(_mm256_castps_si256(a.high))}; }
static inline __m256 low_halves(__m256 a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff))); }
static inline F32 low_halves(F32 a) { return {low_halves(a.low), low_halves(a.high)}; }
static inline __m256 rounded_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a), tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return odd(_mm256_add_epi32(bits, _mm256_add_epi32(tie, _mm256_set1_epi32(0x7fff))));
}
static inline F32 rounded_to_bf16(F32 a) { return {rounded_to_bf16(a.low), rounded_to_bf16(a.high)}; }  // to nearest even; not of NaN
static inline __m256 widened(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
static inline F32 load_bf16(const uint16_t* p) { return {widened(p), widened(p + 8)}; }

// Sixteen 32-bit integers, and what makes them: add_dot adds to each lane the products of its four bytes, u unsigned, s signed,
// without saturation; add_dot_nibbles the same for u up to 15, where 16-bit sums of two have room. AVX2's own instruction would saturate at
// 255 127 2, so bytes are widened first.
struct I32 {
  __m256i low, high;
};
static inline I32 splat(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
static inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
static inline I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
static inline __m256i low_half(I32 a) { return a.low; }
static inline __m256i high_half(I32 a) { return a.high; }
static inline I32 as_integers(F32 a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
static inline I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
static inline I32 nearest(F32 a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
static inline void store_bytes(int8_t* p, I32 a) {  // values fit
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.low, a.high), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
static inline I32 load_line(const char* p) { return {pairs_at(p), pairs_at(p + 32)}; }
static inline F32 to_float(I32 a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
static inline __m256i dot(__m256i sum, __m256i u, __m256i s) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
static inline void add_dot(I32& sum, I32 u, I32 s) { sum.low = dot(sum.low, u.low, s.low), sum.high = dot(sum.high, u.high, s.high); }
static inline __m256i dot_nibbles(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
static inline void add_dot_nibbles(I32& sum, I32 u, I32 s) {
  sum.low = dot_nibbles(sum.low, u.low, s.low), sum.high = dot_nibbles(sum.high, u.high, s.high);
}
static inline __m256i low_nibbles(__m256i a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
static inline I32 low_nibbles(I32 a) { return {low_nibbles(a.low), low_nibbles(a.high)}; }
static inline I32 high_nibbles(I32 a) { return {low_nibbles(_mm256_srli_epi16(a.low, 4)), low_nibbles(_mm256_srli_epi16(a.high, 4))}; }

#else

struct F32 {
  __m512 v;
};

static inline __m256 low_half(F32 a) { return _mm512_castps512_ps256(a.v); }
static inline __m256 high_half(F32 a) { return _mm512_extractf32x8_ps(a.v, 1); }
static inline F32 splat(float x) { return {_mm512_set1_ps(x)}; }
static inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
static inline __mmask16 first_lanes(int count) { return count >= 16 ? 0xffff : __mmask16((1u << count) - 1); }
static inline F32 load_first(const float* p, int count) { return {_mm512_maskz_loadu_ps(first_lanes(count), p)}; }
static inline void store_first(float* p, int count, F32 a) { _mm512_mask_storeu_ps(p, first_lanes(count), a.v); }
static inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F32 select_first(int count, F32 a, F32 b) { return {_mm512_mask_blend_ps(count > 0 ? first_lanes(count) : 0, b.v, a.v)}; }
static inline F32 scaled(F32 x, F32 n) {  // x 2^n, n integral, the result normal
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23)))};
}
static inline F32 round_to_integer(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// A register of 16 bf16 pairs: element 0 in the low half of each 32 bits.
static inline F32 load_even(const uint32_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))}; }
static inline F32 load_odd(const uint32_t* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xffff0000))))};
}
static inline F32 even_of(F32 a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 16))}; }
static inline F32 odd_of(F32 a) { return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(int(0xffff0000))))}; }
static inline F32 low_halves(F32 a) { return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0xffff)))}; }
static inline F32 rounded_to_bf16(F32 a) {  // to nearest even; not of NaN
  const __m512i bits = _mm512_castps_si512(a.v), tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return odd_of({_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff))))});
}
static inline F32 load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}

// A vector of ints, not __m512i (of long longs): between the two gcc copies every sum, twice per step.
struct I32 {
  int v __attribute__((vector_size(64)));
};
static inline I32 lanes(__m512i v) { return {reinterpret_cast<decltype(I32::v)>(v)}; }
static inline __m512i bits(I32 a) { return reinterpret_cast<__m512i>(a.v); }
static inline I32 splat(int32_t x) { return lanes(_mm512_set1_epi32(x)); }
static inline I32 operator+(I32 a, I32 b) { return {a.v + b.v}; }
static inline I32 operator&(I32 a, I32 b) { return {a.v & b.v}; }
static inline I32 max(I32 a, I32 b) { return lanes(_mm512_max_epi32(bits(a), bits(b))); }
static inline __m256i low_half(I32 a) { return _mm512_castsi512_si256(bits(a)); }
static inline __m256i high_half(I32 a) { return _mm512_extracti64x4_epi64(bits(a), 1); }
static inline I32 as_integers(F32 a) { return lanes(_mm512_castps_si512(a.v)); }
static inline I32 nearest(F32 a) { return lanes(_mm512_cvtps_epi32(a.v)); }
static inline void store_bytes(int8_t* p, I32 a) {  // values fit
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(bits(a)));
}
static inline I32 load_line(const char* p) { return lanes(_mm512_loadu_si512(p)); }
static inline F32 to_float(I32 a) { return {_mm512_cvtepi32_ps(bits(a))}; }
#if defined(PACELINE_ISA_avx512_bf16)
static inline void add_dot(I32& sum, I32 u, I32 s) { sum = lanes(_mm512_dpbusd_epi32(bits(sum), bits(u), bits(s))); }
static inline void add_dot_nibbles(I32& sum, I32 u, I32 s) { add_dot(sum, u, s); }
#else
static inline void add_dot(I32& sum, I32 u, I32 s) {
  const __m512i even = _mm512_madd_epi16(_mm512_and_si512(bits(u), _mm512_set1_epi16(0xff)), _mm512_srai_epi16(_mm512_slli_epi16(bits(s), 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(bits(u), 8), _mm512_srai_epi16(bits(s), 8));
  sum = lanes(_mm512_add_epi32(bits(sum), _mm512_add_epi32(even, odd)));
}
static inline void add_dot_nibbles(I32& sum, I32 u, I32 s) {
  sum = lanes(_mm512_add_epi32(bits(sum), _mm512_madd_epi16(_mm512_maddubs_epi16(bits(u), bits(s)), _mm512_set1_epi16(1))));
}
#endif
static inline I32 low_nibbles(I32 a) { return lanes(_mm512_and_si512(bits(a), _mm512_set1_epi8(15))); }
static inline I32 high_nibbles(I32 a) { return low_nibbles(lanes(_mm512_srli_epi16(bits(a), 4))); }

#endif

static inline float first_of(F32 a) { return _mm_cvtss_f32(_mm256_castps256_ps128(low_half(a))); }

// Sum and maximum of the lanes in one fixed tree: halves are combined until one lane is left, lane i with lane i + half.
static inline float sum_of(F32 a) {
  const __m256 eight = _mm256_add_ps(low_half(a), high_half(a));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float max_of(F32 a) {
  const __m256 eight = _mm256_max_ps(low_half(a), high_half(a));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline int32_t sum_of(I32 a) {
  const __m256i eight = _mm256_add_epi32(low_half(a), high_half(a));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
static inline int32_t max_of(I32 a) {
  const __m256i eight = _mm256_max_epi32(low_half(a), high_half(a));
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// e^x to about 1e-7 relative for x in [-87, 88], clamped there: what fp32 can hold without subnormals or infinity.
// NaN stays NaN: max and min return their second operand when one is NaN.
static inline F32 exp_of(F32 x) {
  x = min(splat(88.0f), max(splat(-87.0f), x));
  const F32 n = round_to_integer(x * splat(1.44269504f));
  const F32 r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));  // ln 2 = 0.693359375 - 2.1219444e-4
  F32 p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return scaled(p, n);
}

// 2^x to about 2e-7 relative for x <= 0, from -126 on: below that 2^-126. NaN stays NaN.
static inline F32 exp2_of(F32 x) {
  x = max(splat(-126.0f), x);
  const F32 n = round_to_integer(x), r = x - n;
  F32 p = splat(1.540353039e-4f);  // ln 2 to the k, over k!
  p = fma(p, r, splat(1.333355815e-3f));
  p = fma(p, r, splat(9.618129108e-3f));
  p = fma(p, r, splat(5.550410866e-2f));
  p = fma(p, r, splat(2.402265070e-1f));
  p = fma(p, r, splat(6.931471806e-1f));
  p = fma(p, r, splat(1.0f));
  return scaled(p, n);
}

}  // namespace paceline::cpu::PACELINE_ISA
