// Chooses the instruction set at run time, so that one library serves every processor of its platform.
#include <atomic>

#include "common.h"

static const int64_t targets = 3;

static const DgmnKernels* kernels_of(int64_t target) {
    if (target == 1) return &dgmn_portable;
#if defined(__x86_64__)
    if (target == 2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &dgmn_avx2;
    if (target == 3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &dgmn_avx512;
#endif
    return 0;
}

static int64_t best_target(void) {
    int64_t target = targets;
    while (target > 1 && !kernels_of(target)) --target;
    return target;
}

static const DgmnKernels* chosen(const DgmnProblem* problem) {
    // Without locks: threads that ask at the same time find the same.
    static std::atomic<int64_t> best{0};
    int64_t target = problem->target ? problem->target : best.load(std::memory_order_relaxed);
    if (!target) best.store(target = best_target(), std::memory_order_relaxed);
    return kernels_of(target);
}

DGMN_EXPORT int dgmn_abi(void) { return DGMN_ABI; }

DGMN_EXPORT const char* dgmn_target_name(int64_t target) {
    static const char* const names[] = {0, "portable", "avx2", "avx512"};
    if (target < 0 || target > targets) return 0;
    if (target == 0) target = best_target();
    return kernels_of(target) ? names[target] : 0;
}

#define DGMN_CALL(function, ...)                      \
    const DgmnKernels* kernels = chosen(problem);     \
    return kernels ? kernels->function(__VA_ARGS__) : 2

DGMN_EXPORT int dgmn_attention_forward(
    const DgmnProblem* problem, float scale, const DgmnMap* query, const DgmnMap* key, const DgmnMap* value,
    const float* offset, const float* bias, void* out, float* log_sum) {
    DGMN_CALL(attention_forward, problem, scale, query, key, value, offset, bias, out, log_sum);
}

DGMN_EXPORT int dgmn_aggregate_forward(
    const DgmnProblem* problem, const DgmnMap* value, const float* offset, const float* weight, void* out) {
    DGMN_CALL(aggregate_forward, problem, value, offset, weight, out);
}

DGMN_EXPORT int dgmn_position_forward(
    const DgmnProblem* problem, int64_t mirrored, int64_t nodes, const DgmnMap* query, const float* row_table,
    const float* column_table, float* scores) {
    DGMN_CALL(position_forward, problem, mirrored, nodes, query, row_table, column_table, scores);
}

#if !defined(DGMN_INFERENCE)
DGMN_EXPORT int dgmn_attention_backward(
    const DgmnProblem* problem, float scale, const DgmnMap* grad_out, const DgmnMap* query, const DgmnMap* key,
    const DgmnMap* value, const float* offset, const float* bias, void* grad_query,
    float* grad_key, float* grad_value, float* grad_offset, float* grad_bias, float* affinity) {
    DGMN_CALL(attention_backward, problem, scale, grad_out, query, key, value, offset, bias, grad_query,
              grad_key, grad_value, grad_offset, grad_bias, affinity);
}

DGMN_EXPORT int dgmn_aggregate_backward(
    const DgmnProblem* problem, const DgmnMap* grad_out, const DgmnMap* value, const float* offset,
    const float* weight, float* grad_value, float* grad_offset, float* grad_weight) {
    DGMN_CALL(aggregate_backward, problem, grad_out, value, offset, weight, grad_value, grad_offset, grad_weight);
}

DGMN_EXPORT int dgmn_position_backward(
    const DgmnProblem* problem, int64_t mirrored, int64_t nodes, const float* grad_scores, const DgmnMap* query,
    const float* row_table, const float* column_table, void* grad_query, float* grad_row_table,
    float* grad_column_table) {
    DGMN_CALL(position_backward, problem, mirrored, nodes, grad_scores, query, row_table, column_table, grad_query,
              grad_row_table, grad_column_table);
}

DGMN_EXPORT int dgmn_gelu_backward(
    const DgmnProblem* problem, const float* before, float* grad, float* active, float* sum) {
    DGMN_CALL(gelu_backward, problem, before, grad, active, sum);
}
#endif
