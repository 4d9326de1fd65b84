// The C interface of the native CPU kernels. No PyTorch headers: Python calls it with ctypes.
#pragma once
#include <stdint.h>

#define DGMN_ABI 3

#if defined(DGMN_EXPORT)  // by who includes the kernels in a library of his own
#elif defined(_WIN32)
#define DGMN_EXPORT extern "C" __declspec(dllexport)
#else
#define DGMN_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// A feature map (B, H * W, heads, D). Strides count elements; the channels are adjacent.
// The slices of one projection fit without a copy.
struct DgmnMap {
    const void* data;
    int64_t batch, position, head;
};

// offset (B, H * W, offset_heads, K, 2) and all arrays (B, H * W, heads, K) are contiguous float32.
// Maps are float32 or bfloat16; arithmetic is in float32.
struct DgmnProblem {
    int64_t batch, height, width, heads, dim;
    int64_t kernel_size, dilation, offset_heads;
    int64_t bfloat16;
    int64_t threads;
    int64_t target;  // instruction set, numbered as in dgmn_target_name(); 0 for the best of this processor
    // The forward functions compute share number `part` of `parts` equal ones, for callers with threads of their own;
    // with parts = 0 all.
    int64_t part, parts;
};

// The kernels return 0 on success, 1 if memory ran out, 2 if the processor lacks the chosen instruction set.
DGMN_EXPORT int dgmn_abi(void);
DGMN_EXPORT const char* dgmn_target_name(int64_t target);  // null if the processor lacks it; 0 for the best

DGMN_EXPORT int dgmn_attention_forward(
    const DgmnProblem*, float scale, const DgmnMap* query, const DgmnMap* key, const DgmnMap* value,
    const float* offset, const float* bias, void* out, float* log_sum);

// grad_key and grad_value are float32 and start at zero; affinity is work space of the size of grad_bias.
DGMN_EXPORT int dgmn_attention_backward(
    const DgmnProblem*, float scale, const DgmnMap* grad_out, const DgmnMap* query, const DgmnMap* key,
    const DgmnMap* value, const float* offset, const float* bias, void* grad_query,
    float* grad_key, float* grad_value, float* grad_offset, float* grad_bias, float* affinity);

DGMN_EXPORT int dgmn_aggregate_forward(
    const DgmnProblem*, const DgmnMap* value, const float* offset, const float* weight, void* out);

DGMN_EXPORT int dgmn_aggregate_backward(
    const DgmnProblem*, const DgmnMap* grad_out, const DgmnMap* value, const float* offset, const float* weight,
    float* grad_value, float* grad_offset, float* grad_weight);

// scores (B, H * W, heads, nodes) = query . row_table[H - 1 - y + s] + query . column_table[W - 1 - x + s];
// either table may be null. mirrored: position (y, x) takes the first term of position (x, y). If the map is not square,
// the forward pass stretches that term to it, in one share and not with DGMN_INFERENCE; the backward pass does not.
DGMN_EXPORT int dgmn_position_forward(
    const DgmnProblem*, int64_t mirrored, int64_t nodes, const DgmnMap* query, const float* row_table, const float* column_table,
    float* scores);

// The gradients of the tables start at zero.
DGMN_EXPORT int dgmn_position_backward(
    const DgmnProblem*, int64_t mirrored, int64_t nodes, const float* grad_scores, const DgmnMap* query, const float* row_table,
    const float* column_table, void* grad_query, float* grad_row_table, float* grad_column_table);

// Of `before`, a map of one image, row and head in float32: active = gelu(before), grad becomes grad * gelu'(before), and
// `sum` grows by that of all positions.
DGMN_EXPORT int dgmn_gelu_backward(const DgmnProblem*, const float* before, float* grad, float* active, float* sum);
