#if defined(__x86_64__)
#include <immintrin.h>

#include "common.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace avx2 {

struct Simd {
    typedef __m256 Vector;
    enum { width = 8 };

    static inline Vector set(float x) { return _mm256_set1_ps(x); }
    static inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
    static inline Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
    static inline Vector load(const float* p) { return _mm256_loadu_ps(p); }
    static inline void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
    static inline Vector load(const bfloat16* p) {
        const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    }
    static inline void store(bfloat16* p, Vector x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        rounded = _mm256_srli_epi32(rounded, 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
        const __m128i low = _mm256_castsi256_si128(rounded), high = _mm256_extracti128_si256(rounded, 1);
        _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(low, high));
    }
    static inline void sums(Vector a, Vector b, Vector c, Vector d, float* out) {
        const Vector all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    }
};

static inline __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256 load_part(const float* row, int64_t n) { return _mm256_maskload_ps(row, first(n)); }
static inline void store_part(float* row, int64_t n, __m256 x) { _mm256_maskstore_ps(row, first(n), x); }

#include "kernels.h"

}  // namespace avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const DgmnKernels dgmn_avx2 = avx2::kernels;
#endif
