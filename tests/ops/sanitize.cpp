// Calls the native kernels on hard inputs, for AddressSanitizer and UndefinedBehaviorSanitizer: see test_sanitizers.py.
//
// All arrays end where the kernels may read or write last, so one element too many is found. Between the positions of a
// map lie NaNs, which would show in the results. These are compared with plain loops, unless an input is not finite.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>

#include "../../csrc/dgmn.h"

enum Hardness { mild, wild_walks, wild_everything };

struct Case {
    int64_t target, batch, height, width, heads, dim, kernel_size, dilation, offset_heads, bfloat16, threads, gap;
    Hardness hardness;

    int64_t positions() const { return batch * height * width; }
    int64_t nodes() const { return kernel_size * kernel_size; }
    DgmnProblem problem() const {
        return DgmnProblem{batch,    height,       width,    heads,   dim,   kernel_size,
                           dilation, offset_heads, bfloat16, threads, target};
    }
};

static uint32_t state = 1;

static int64_t below(int64_t n) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

static float uniform() { return (float)below(1 << 20) / (1 << 19) - 1.0f; }

static void check(bool good, const Case& c, const char* what) {
    if (good) return;
    fprintf(stderr,
            "%s: target %d, B %d, H %d, W %d, heads %d, D %d, kernel_size %d, dilation %d, offset_heads %d, "
            "bfloat16 %d, threads %d, gap %d, hardness %d\n",
            what, (int)c.target, (int)c.batch, (int)c.height, (int)c.width, (int)c.heads, (int)c.dim,
            (int)c.kernel_size, (int)c.dilation, (int)c.offset_heads, (int)c.bfloat16, (int)c.threads, (int)c.gap,
            (int)c.hardness);
    exit(1);
}

static float wild() {
    static const float numbers[] = {NAN, -NAN, INFINITY, -INFINITY, 3.4e38f, -3.4e38f, 1e-45f, -1e-45f, 1e9f, -1e9f,
                                    2147483648.0f, -2147483648.0f, 16777216.0f, -1.0f, 0.0f, -0.0f};
    return numbers[below(sizeof numbers / sizeof *numbers)];
}

struct Floats {
    int64_t size;
    std::unique_ptr<float[]> data;

    // Uninitialised results would pass unseen; NaNs do not.
    explicit Floats(int64_t size, float filled = NAN) : size(size), data(new float[size]) {
        for (int64_t i = 0; i < size; ++i) data[i] = filled;
    }
    Floats& random(bool with_wild, float spread = 1.0f) {
        for (int64_t i = 0; i < size; ++i) data[i] = with_wild && below(4) == 0 ? wild() : spread * uniform();
        return *this;
    }
    float operator[](int64_t i) const { return data[i]; }
    operator float*() const { return data.get(); }
};

// Numbers in the storage type of the maps.
struct Stored {
    int64_t bfloat16, size;
    std::unique_ptr<char[]> data;

    Stored(const Case& c, int64_t size)
        : bfloat16(c.bfloat16), size(size), data(new char[size * (c.bfloat16 ? 2 : 4)]) {
        for (int64_t i = 0; i < size; ++i) set(i, NAN);
    }
    void set(int64_t i, float x) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (!bfloat16) memcpy(&data[4 * i], &bits, 4);
        const uint16_t upper = (uint16_t)(bits >> 16);
        if (bfloat16) memcpy(&data[2 * i], &upper, 2);
    }
    float operator[](int64_t i) const {
        uint32_t bits = 0;
        uint16_t upper;
        if (!bfloat16) memcpy(&bits, &data[4 * i], 4);
        if (bfloat16) memcpy(&upper, &data[2 * i], 2), bits = (uint32_t)upper << 16;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    }
};

// A map (B, H * W, heads, D) with a gap after the channels of a head and after a position, but not after the last.
struct Map {
    const Case& c;
    int64_t head, position, image;
    Stored stored;

    explicit Map(const Case& c)
        : c(c), head(c.dim + c.gap), position(c.heads * head + c.gap), image(c.height * c.width * position + c.gap),
          stored(c, c.batch ? index(c.batch - 1, c.height * c.width - 1, c.heads - 1, c.dim - 1) + 1 : 0) {
        for (int64_t b = 0; b < c.batch; ++b)
            for (int64_t p = 0; p < c.height * c.width; ++p)
                for (int64_t h = 0; h < c.heads; ++h)
                    for (int64_t d = 0; d < c.dim; ++d)
                        stored.set(index(b, p, h, d),
                                   c.hardness == wild_everything && below(8) == 0 ? wild() : uniform());
    }
    int64_t index(int64_t b, int64_t p, int64_t h, int64_t d) const { return b * image + p * position + h * head + d; }
    // An empty map has no memory, as in PyTorch.
    DgmnMap view() const { return DgmnMap{c.batch ? stored.data.get() : 0, image, position, head}; }
    double at(int64_t b, int64_t y, int64_t x, int64_t h, int64_t d) const {
        const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
        return inside ? stored[index(b, y * c.width + x, h, d)] : 0.0;
    }
};

struct Walks : Floats {
    const Case& c;
    explicit Walks(const Case& c) : Floats(c.positions() * c.offset_heads * c.nodes() * 2), c(c) {
        random(c.hardness != mild, 3.0f);
    }
    // The map at node k of a position, read bilinearly.
    double sample(const Map& map, int64_t b, int64_t p, int64_t h, int64_t k, int64_t d) const {
        const int64_t pad = c.dilation * (c.kernel_size - 1) / 2, group = h / (c.heads / c.offset_heads);
        const float* walk = *this + (((b * c.height * c.width + p) * c.offset_heads + group) * c.nodes() + k) * 2;
        const float y = (float)(p / c.width + k / c.kernel_size * c.dilation - pad) + walk[0];
        const float x = (float)(p % c.width + k % c.kernel_size * c.dilation - pad) + walk[1];
        if (!(y > -1 && y < c.height && x > -1 && x < c.width)) return 0.0;
        const int64_t top = (int64_t)floorf(y), left = (int64_t)floorf(x);
        const double fy = y - top, fx = x - left;
        return (1 - fy) * ((1 - fx) * map.at(b, top, left, h, d) + fx * map.at(b, top, left + 1, h, d)) +
               fy * ((1 - fx) * map.at(b, top + 1, left, h, d) + fx * map.at(b, top + 1, left + 1, h, d));
    }
};

// Results that must be finite, because the inputs are.
template <class Numbers>
static void check_finite(const Case& c, const Numbers& numbers, const char* name) {
    for (int64_t i = 0; c.hardness != wild_everything && i < numbers.size; ++i)
        check(isfinite(numbers[i]), c, name);
}

static void check_close(const Case& c, double got, double want, int64_t bfloat16, const char* name) {
    const double tolerance = bfloat16 ? 1.0 / 128 : 1e-4;
    check(c.hardness == wild_everything || fabs(got - want) <= tolerance * (1 + fabs(want)), c, name);
}

// A forward function: in one call, or in shares, whose order does not matter. Outputs start as NaN.
template <class Call>
static bool done(const Case& c, const Call& call) {
    DgmnProblem problem = c.problem();
    problem.parts = below(4);
    if (!problem.parts) return !call(&problem);
    for (problem.part = problem.parts - 1; problem.part >= 0; --problem.part)
        if (call(&problem)) return false;
    return true;
}

static void aggregate(const Case& c) {
    const DgmnProblem problem = c.problem();
    const Map value(c), grad_out(c);
    const Walks walks(c);
    const int64_t numbers = c.positions() * c.heads * c.nodes(), channels = c.positions() * c.heads * c.dim;
    Floats weight(numbers);
    weight.random(c.hardness == wild_everything);
    const DgmnMap values = value.view(), grads = grad_out.view();
    const Stored out(c, channels);
    const auto call = [&](const DgmnProblem* share) {
        return dgmn_aggregate_forward(share, &values, walks, weight, out.data.get());
    };
    check(done(c, call), c, "aggregate_forward failed");
    int64_t i = 0;
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t p = 0; p < c.height * c.width; ++p)
            for (int64_t h = 0; h < c.heads; ++h)
                for (int64_t d = 0; d < c.dim; ++d, ++i) {
                    double sum = 0;
                    for (int64_t k = 0; k < c.nodes(); ++k)
                        sum += weight[i / c.dim * c.nodes() + k] * walks.sample(value, b, p, h, k, d);
                    check_close(c, out[i], sum, c.bfloat16, "aggregate_forward");
                }
    const Floats grad_value(channels, 0.0f), grad_offset(walks.size), grad_weight(numbers);
    check(!dgmn_aggregate_backward(&problem, &grads, &values, walks, weight, grad_value, grad_offset, grad_weight), c,
          "aggregate_backward failed");
    check_finite(c, grad_value, "grad_value");
    check_finite(c, grad_offset, "grad_offset");
    check_finite(c, grad_weight, "grad_weight");
}

static void attention(const Case& c, bool with_bias) {
    const DgmnProblem problem = c.problem();
    const Map query(c), key(c), value(c), grad_out(c);
    const Walks walks(c);
    const int64_t numbers = c.positions() * c.heads * c.nodes(), channels = c.positions() * c.heads * c.dim;
    const float scale = c.hardness == wild_everything && below(4) == 0 ? wild() : 0.5f;
    Floats bias(numbers);
    bias.random(c.hardness == wild_everything);
    for (int64_t i = 0; i < numbers; ++i)
        if (i % c.nodes() && below(8) == 0) bias.data[i] = below(2) ? -INFINITY : -1e30f;  // left out, but never all
    const float* added = with_bias ? (float*)bias : 0;
    const DgmnMap queries = query.view(), keys = key.view(), values = value.view(), grads = grad_out.view();
    const Stored out(c, channels);
    const Floats log_sum(c.positions() * c.heads);
    const auto call = [&](const DgmnProblem* share) {
        return dgmn_attention_forward(share, scale, &queries, &keys, &values, walks, added, out.data.get(), log_sum);
    };
    check(done(c, call), c, "attention_forward failed");
    check_finite(c, log_sum, "log_sum");
    int64_t i = 0;
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t p = 0; p < c.height * c.width; ++p)
            for (int64_t h = 0; h < c.heads; ++h, ++i) {
                double logits[25], most = -INFINITY, total = 0;
                for (int64_t k = 0; k < c.nodes(); ++k) {
                    double dot = 0;
                    for (int64_t d = 0; d < c.dim; ++d)
                        dot += query.at(b, p / c.width, p % c.width, h, d) * walks.sample(key, b, p, h, k, d);
                    logits[k] = scale * dot + (added ? added[i * c.nodes() + k] : 0.0);
                    most = fmax(most, logits[k]);
                }
                for (int64_t k = 0; k < c.nodes(); ++k) total += exp(logits[k] - most);
                check_close(c, log_sum[i], most + log(total), 0, "log_sum");
                for (int64_t d = 0; d < c.dim; ++d) {
                    double sum = 0;
                    for (int64_t k = 0; k < c.nodes(); ++k)
                        sum += exp(logits[k] - most) / total * walks.sample(value, b, p, h, k, d);
                    check_close(c, out[i * c.dim + d], sum, c.bfloat16, "attention_forward");
                }
            }
    const Stored grad_query(c, channels);
    const Floats grad_key(channels, 0.0f), grad_value(channels, 0.0f);
    const Floats grad_offset(walks.size), grad_bias(numbers), affinity(numbers);
    check(!dgmn_attention_backward(&problem, scale, &grads, &queries, &keys, &values, walks, added,
                                   grad_query.data.get(), grad_key, grad_value, grad_offset, grad_bias, affinity),
          c, "attention_backward failed");
    check_finite(c, grad_query, "grad_query");
    check_finite(c, grad_key, "grad_key");
    check_finite(c, grad_value, "grad_value");
    check_finite(c, grad_offset, "grad_offset");
    check_finite(c, grad_bias, "grad_bias");
}

// Between which two indices of `input` ones an index of `size` lies.
struct Place {
    int64_t at[2];
    double part;

    Place(int64_t index, int64_t size, int64_t input) {
        const double place = fmax((index + 0.5) * input / size - 0.5, 0.0);
        at[0] = (int64_t)place;
        at[1] = at[0] + 1 < input ? at[0] + 1 : at[0];
        part = place - at[0];
    }
};

static void position(const Case& c, bool with_rows, bool with_columns) {
    const DgmnProblem problem = c.problem();
    const Map query(c);
    const bool square = c.height == c.width, stretched = !square && with_rows && below(2);
    const int64_t nodes = c.nodes(), mirrored = square || stretched;
    const bool hard = c.hardness == wild_everything;
    Floats row_table((c.height + nodes - 1) * c.dim), column_table((c.width + nodes - 1) * c.dim);
    const float* rows = with_rows ? (float*)row_table.random(hard) : 0;
    const float* columns = with_columns ? (float*)column_table.random(hard) : 0;
    const DgmnMap queries = query.view();
    Floats scores(c.positions() * c.heads * nodes);
    const auto call = [&](const DgmnProblem* share) {
        return dgmn_position_forward(share, mirrored, nodes, &queries, rows, columns, scores);
    };
    check(stretched ? !call(&problem) : done(c, call), c, "position_forward failed");
    // The height term of position (y, x), taken from itself.
    const auto along_height = [&](int64_t b, int64_t y, int64_t x, int64_t h, int64_t k) {
        double dot = 0;
        for (int64_t d = 0; d < c.dim; ++d)
            dot += query.at(b, y, x, h, d) * rows[(c.height - 1 - y + k) * c.dim + d];
        return dot;
    };
    int64_t i = 0;
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t p = 0; p < c.height * c.width; ++p)
            for (int64_t h = 0; h < c.heads; ++h)
                for (int64_t k = 0; k < nodes; ++k, ++i) {
                    const int64_t y = p / c.width, x = p % c.width;
                    double dot = 0;
                    if (rows && !stretched) dot = mirrored ? along_height(b, x, y, h, k) : along_height(b, y, x, h, k);
                    if (stretched) {
                        const Place down(y, c.height, c.width), across(x, c.width, c.height);
                        for (int corner = 0; corner < 4; ++corner)
                            dot += (corner & 1 ? down.part : 1 - down.part) * (corner & 2 ? across.part : 1 - across.part) *
                                   along_height(b, across.at[corner >> 1], down.at[corner & 1], h, k);
                    }
                    for (int64_t d = 0; columns && d < c.dim; ++d)
                        dot += query.at(b, y, x, h, d) * columns[(c.width - 1 - x + k) * c.dim + d];
                    check_close(c, scores[i], dot, 0, "position_forward");
                }
    const Stored grad_query(c, c.positions() * c.heads * c.dim);
    const Floats grad_rows(row_table.size, 0.0f), grad_columns(column_table.size, 0.0f);
    check(!dgmn_position_backward(&problem, square, nodes, scores.random(hard), &queries, rows, columns,
                                  grad_query.data.get(), rows ? (float*)grad_rows : 0,
                                  columns ? (float*)grad_columns : 0),
          c, "position_backward failed");
    check_finite(c, grad_query, "grad_query");
    check_finite(c, grad_rows, "grad_rows");
    check_finite(c, grad_columns, "grad_columns");
}

static void gelu(const Case& c) {
    DgmnProblem problem = c.problem();
    problem.width = c.positions();
    const int64_t numbers = c.positions() * c.dim;
    const bool hard = c.hardness == wild_everything;
    Floats before(numbers), grad(numbers);
    before.random(hard, 6.0f);
    grad.random(hard);
    const Floats active(numbers), sum(c.dim, 0.5f);
    std::unique_ptr<double[]> sums(new double[c.dim]);
    for (int64_t d = 0; d < c.dim; ++d) sums[d] = 0.5;
    std::unique_ptr<float[]> given(new float[numbers]);
    for (int64_t i = 0; i < numbers; ++i) given[i] = grad[i];
    check(!dgmn_gelu_backward(&problem, before, grad, active, sum), c, "gelu_backward failed");
    for (int64_t i = 0; i < numbers; ++i) {
        const double x = before[i], share = 0.5 * erfc(-x * sqrt(0.5)), slope = share + x * exp(-x * x / 2) * 0.3989422804;
        check_close(c, active[i], x * share, 0, "active");
        check_close(c, grad[i], given[i] * slope, 0, "slope");
        sums[i % c.dim] += given[i] * slope;
    }
    for (int64_t d = 0; d < c.dim; ++d) check_close(c, sum[d], sums[d], 0, "sum");
}

int main() {
    static const int64_t sizes[][2] = {{1, 1}, {1, 5}, {5, 1}, {4, 4}, {3, 19}};
    static const int64_t dims[] = {1, 3, 7, 16, 33, 64}, kernel_sizes[] = {1, 2, 3, 5};
    int cases = 0;
    for (int64_t target = 1; target <= 3; ++target) {
        if (!dgmn_target_name(target)) continue;
        printf("%s ", dgmn_target_name(target));
        for (const auto& size : sizes)
            for (int64_t dim : dims)
                for (int64_t kernel_size : kernel_sizes)
                    for (int64_t bfloat16 = 0; bfloat16 < 2; ++bfloat16)
                        for (int hardness = mild; hardness <= wild_everything; ++hardness) {
                            ++cases;
                            const int64_t heads = 1 + 2 * below(2), batch = below(8) ? 1 + below(2) : 0;
                            const Case c{target,   batch,          size[0],          size[1],          heads,
                                         dim,      kernel_size,    1 + 2 * below(2), below(2) ? heads : 1,
                                         bfloat16, 1 + 2 * below(2), below(2) * (1 + below(9)), (Hardness)hardness};
                            aggregate(c);
                            attention(c, below(2));
                            position(c, below(4), below(4));
                            if (!bfloat16) gelu(c);
                        }
    }
    printf("%d cases\n", cases);
    return 0;
}
