// Vectors of four floats. Every 64 bit processor has them (SSE2, NEON).
#include "common.h"

namespace portable {

struct Simd {
    typedef float Vector __attribute__((vector_size(16)));
    enum { width = 4 };

    static inline Vector set(float x) { return Vector{x, x, x, x}; }
    static inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
    static inline Vector mul(Vector a, Vector b) { return a * b; }

    static inline Vector load(const float* p) {
        Vector x;
        memcpy(&x, p, sizeof x);
        return x;
    }
    static inline void store(float* p, Vector x) { memcpy(p, &x, sizeof x); }
    static inline Vector load(const bfloat16* p) {
        uint32_t bits[width];
        for (int i = 0; i < width; ++i) bits[i] = (uint32_t)p[i].bits << 16;
        Vector x;
        memcpy(&x, bits, sizeof x);
        return x;
    }
    static inline void store(bfloat16* p, Vector x) {
        uint32_t bits[width];
        memcpy(bits, &x, sizeof x);
        for (int i = 0; i < width; ++i) {
            const bool nan = (bits[i] & 0x7fffffffu) > 0x7f800000u;
            const uint32_t rounded = (bits[i] + 0x7fffu + ((bits[i] >> 16) & 1u)) >> 16;
            p[i].bits = (uint16_t)(nan ? 0x7fc0u : rounded);
        }
    }
    // The sums of four vectors.
    static inline void sums(Vector a, Vector b, Vector c, Vector d, float* out) {
        out[0] = (a[0] + a[2]) + (a[1] + a[3]);
        out[1] = (b[0] + b[2]) + (b[1] + b[3]);
        out[2] = (c[0] + c[2]) + (c[1] + c[3]);
        out[3] = (d[0] + d[2]) + (d[1] + d[3]);
    }
};

#include "kernels.h"

}  // namespace portable

const DgmnKernels dgmn_portable = portable::kernels;
