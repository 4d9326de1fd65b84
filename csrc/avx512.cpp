#if defined(__x86_64__)
#include <immintrin.h>

#include "common.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace avx512 {

struct Simd {
    typedef __m512 Vector;
    enum { width = 16 };

    static inline Vector set(float x) { return _mm512_set1_ps(x); }
    static inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static inline Vector mul(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
    static inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
    static inline void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
    static inline Vector load(const bfloat16* p) { return widened(_mm256_loadu_si256((const __m256i*)p)); }
    static inline void store(bfloat16* p, Vector x) { _mm256_storeu_si256((__m256i*)p, rounded(x)); }

    static inline Vector widened(__m256i x) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
    }
    static inline __m256i rounded(Vector x) {
        const __m512i bits = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i high = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        high = _mm512_srli_epi32(high, 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(high, nan, _mm512_set1_epi32(0x7fc0)));
    }
    static inline void sums(Vector a, Vector b, Vector c, Vector d, float* out) {
        // Add up quarters of 128 bits until each input vector has one quarter left, then add within the quarters.
        const Vector ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        const Vector cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
        Vector all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
        all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
        all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
        const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
        _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
    }
};

static inline __mmask16 first(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline __m512 load_part(const float* row, int64_t n) { return _mm512_maskz_loadu_ps(first(n), row); }
static inline void store_part(float* row, int64_t n, __m512 x) { _mm512_mask_storeu_ps(row, first(n), x); }
static inline __m512 load_part(const bfloat16* row, int64_t n) {
    return Simd::widened(_mm256_maskz_loadu_epi16(first(n), row));
}
static inline void store_part(bfloat16* row, int64_t n, __m512 x) {
    _mm256_mask_storeu_epi16(row, first(n), Simd::rounded(x));
}

#include "kernels.h"

}  // namespace avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const DgmnKernels dgmn_avx512 = avx512::kernels;
#endif
