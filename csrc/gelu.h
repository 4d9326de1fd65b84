// The backward pass of GELU: the activation again, the slope, and the gradient of the bias in one pass over memory.

// The normal distribution below -|x|, to 4e-7 of its value if `bell`, e ** (-x * x / 2), is exact.
static inline float normal_below(float x, float bell) {
    // e ** (z * z) * erfc(z) at z = |x| / sqrt(2), as a polynomial in t; fitted to the least relative error.
    const float t = 1.0f / (1.0f + 0.35355339f * __builtin_fabsf(x));
    float y = 9.530108972e-02f;
    y = y * t - 3.820555905e-01f;
    y = y * t + 4.253272111e-01f;
    y = y * t + 1.167120090e-02f;
    y = y * t + 2.916852487e-01f;
    y = y * t + 2.755857774e-01f;
    y = y * t + 2.824854166e-01f;
    return 0.5f * t * y * bell;
}

// One thread sums the gradients of each run of positions. Then the runs are added up in their order.
static int gelu_backward(const DgmnProblem* problem, const float* before, float* grad, float* active, float* sum) {
    enum { run_size = 64 };
    const int64_t dim = problem->dim, positions = problem->width, runs = (positions + run_size - 1) / run_size;
    const int threads = threads_of(problem, runs);
    float* sums = (float*)calloc((size_t)runs, (size_t)dim * sizeof(float));
    if (runs && !sums) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t run = 0; run < runs; ++run) {
        const int64_t first = run * run_size, end = first + run_size < positions ? first + run_size : positions;
        float* DGMN_RESTRICT total = sums + run * dim;
        for (int64_t position = first; position < end; ++position) {
            const float* DGMN_RESTRICT x = before + position * dim;
            float* DGMN_RESTRICT g = grad + position * dim;
            float* DGMN_RESTRICT a = active + position * dim;
#pragma omp simd
            for (int64_t i = 0; i < dim; ++i) {
                const float bell = exp_below_zero(-0.5f * x[i] * x[i]);
                const float below = normal_below(x[i], bell);
                const float share = x[i] > 0.0f ? 1.0f - below : below;
                a[i] = x[i] * share;
                g[i] *= share + 0.39894228f * x[i] * bell;
                total[i] += g[i];
            }
        }
    }
    for (int64_t run = 0; run < runs; ++run)
        for (int64_t i = 0; i < dim; ++i) sum[i] += sums[run * dim + i];
    free(sums);
    return 0;
}
