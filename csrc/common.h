// What all instruction sets share. System headers are included here, before any instruction set is switched on.
// So no inline function of a header is compiled with instructions that the processor may lack.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
#endif

#include "dgmn.h"

struct bfloat16 {
    uint16_t bits;
};

// The entry points of one instruction set. With DGMN_INFERENCE: in float32 only, without those for training.
struct DgmnKernels {
    decltype(&dgmn_attention_forward) attention_forward;
    decltype(&dgmn_aggregate_forward) aggregate_forward;
    decltype(&dgmn_position_forward) position_forward;
#if !defined(DGMN_INFERENCE)
    decltype(&dgmn_attention_backward) attention_backward;
    decltype(&dgmn_aggregate_backward) aggregate_backward;
    decltype(&dgmn_position_backward) position_backward;
    decltype(&dgmn_gelu_backward) gelu_backward;
#endif
};

extern const DgmnKernels dgmn_portable;
#if defined(__x86_64__)
extern const DgmnKernels dgmn_avx2;
extern const DgmnKernels dgmn_avx512;
#endif
