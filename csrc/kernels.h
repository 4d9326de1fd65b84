// The kernels, written once on vectors of floats (`Simd`). Each instruction set includes this file inside its own
// namespace, so that the functions of one set never replace those of another.
//
// Work is cut into blocks of positions. For a block, the sampled points are computed first, for all nodes at once.
// Then every position reads its nodes from the map, four corners each. These stay in the cache between key and value.

#define DGMN_RESTRICT __restrict__

typedef Simd::Vector Vector;

enum : int64_t { block_size = 16, strip_size = 4, corners = 4, all_inside = 15 };

// The first n channels of a vector, and zeros. Instruction sets with masks have functions of their own.
template <class T>
static inline Vector load_part(const T* row, int64_t n) {
    T part[Simd::width];
    memset(part, 0, sizeof part);
    memcpy(part, row, (size_t)n * sizeof(T));
    return Simd::load(part);
}

template <class T>
static inline void store_part(T* row, int64_t n, Vector x) {
    T part[Simd::width];
    Simd::store(part, x);
    memcpy(row, part, (size_t)n * sizeof(T));
}

// The channels of one head. NV > 0: NV whole vectors. MANY: a multiple of four vectors. 0: any number of channels.
enum { MANY = -1 };

// How many vectors of them are computed at a time: as many as fit into registers.
static constexpr int chunk_of(int NV) { return NV == MANY ? 4 : NV == 0 ? 1 : NV; }

template <int NV>
struct Channels {
    int64_t dim;

    explicit Channels(int64_t dim) : dim(dim) {}

    // A constant to the compiler where there is one, also within the functions that threads run.
    inline int count() const { return NV > 0 ? NV : (int)((dim + Simd::width - 1) / Simd::width); }
    inline int64_t left(int v) const { return dim - (int64_t)v * Simd::width; }

    template <class T>
    inline Vector load(const T* row, int v) const {
        row += (int64_t)v * Simd::width;
        return NV || left(v) >= Simd::width ? Simd::load(row) : load_part(row, left(v));
    }

    template <class T>
    inline void store(T* row, int v, Vector x) const {
        row += (int64_t)v * Simd::width;
        if (NV || left(v) >= Simd::width) return Simd::store(row, x);
        store_part(row, left(v), x);
    }
};

// One head of one image of a map; row(i) points to the channels of position i.
template <class T>
struct Rows {
    const T* data;
    int64_t step;

    Rows(const DgmnMap* map, int64_t image, int64_t head)
        : data((const T*)map->data + image * map->batch + head * map->head), step(map->position) {}
    inline const T* row(int64_t position) const { return data + position * step; }
};

// The channels of one position, kept in registers if the compiler knows the number of vectors.
template <class T, int NV>
struct Row {
    const Channels<NV>& channels;
    const T* data;
    Vector kept[NV > 0 ? NV : 1];

    Row(const Channels<NV>& channels, const T* data) : channels(channels), data(data) {
        for (int v = 0; v < NV; ++v) kept[v] = Simd::load(data + v * Simd::width);
    }
    inline Vector operator[](int v) const { return NV > 0 ? kept[v] : channels.load(data, v); }
};

// The sampled points of a block, [position][node], and room for numbers computed from them.
struct Points {
    float *y, *x;  // position within the cell of the four corners, 0 to 1
    float* weight[corners];  // bilinear
    float* scaled[corners];  // the same times a coefficient of the node
    int32_t* corner;  // index of the upper left corner; it may lie outside of the map
    int32_t* inside;  // bit c: corner c lies in the rows that were asked for
    float* room;

    static size_t floats(int64_t nodes, int room) { return (size_t)(nodes * block_size * (12 + room)); }

    Points(float* memory, int64_t nodes) {
        const int64_t n = nodes * block_size;
        y = memory;
        x = y + n;
        for (int c = 0; c < corners; ++c) weight[c] = x + (c + 1) * n;
        for (int c = 0; c < corners; ++c) scaled[c] = x + (c + 1 + corners) * n;
        corner = (int32_t*)(x + 9 * n);
        inside = corner + n;
        room = (float*)(inside + n);
    }

    void scale(int64_t from, int64_t count, const float* DGMN_RESTRICT coefficient) const {
        for (int c = 0; c < corners; ++c) {
            const float* DGMN_RESTRICT in = weight[c] + from;
            float* DGMN_RESTRICT out = scaled[c] + from;
#pragma omp simd
            for (int64_t e = 0; e < count; ++e) out[e] = coefficient[e] * in[e];
        }
    }
};

// Neighbouring positions of one row of the map.
struct Block {
    int64_t image, row, column, count;
    int64_t first;  // index of its first position
};

static inline int64_t blocks_in_row(const DgmnProblem* problem) { return (problem->width + block_size - 1) / block_size; }

static inline int64_t blocks_in_image(const DgmnProblem* problem) { return blocks_in_row(problem) * problem->height; }

// Blocks follow each other down a strip of columns. So in wide maps, too, the rows that they read stay in the cache.
static inline Block block_of(const DgmnProblem* problem, int64_t index) {
    const int64_t in_row = blocks_in_row(problem), in_image = blocks_in_image(problem);
    const int64_t image = index / in_image, place = index % in_image;
    const int64_t strip = place / (strip_size * problem->height), done = strip * strip_size;
    const int64_t across = in_row - done < strip_size ? in_row - done : (int64_t)strip_size;
    const int64_t rest = place - done * problem->height;
    const int64_t size = (problem->width + in_row - 1) / in_row;
    const int64_t row = rest / across, column = (done + rest % across) * size;
    const int64_t left = problem->width - column;
    return Block{image, row, column, left < 0 ? 0 : left < size ? left : size, row * problem->width + column};
}

// Rows of the map, from the first to before the last.
struct Span {
    int64_t first, end;
};

// The walks of one group of heads start at `offset` + position * step. Corners outside of `rows` count as outside.
static __attribute__((noinline)) void locate(
    const DgmnProblem* problem, const float* offset, int64_t step, Block block, Span rows, Points points) {
    const int64_t side = problem->kernel_size, nodes = side * side, n = block.count * nodes;
    const int64_t pad = problem->dilation * (side - 1) / 2;
    float* DGMN_RESTRICT y = points.y;
    float* DGMN_RESTRICT x = points.x;
    for (int64_t p = 0, e = 0; p < block.count; ++p) {
        const float* walk = offset + (block.first + p) * step;
        for (int64_t i = 0; i < side; ++i)
            for (int64_t j = 0; j < side; ++j, ++e, walk += 2) {
                y[e] = (float)(block.row + i * problem->dilation - pad) + walk[0];
                x[e] = (float)(block.column + p + j * problem->dilation - pad) + walk[1];
            }
    }
    const uint32_t height = (uint32_t)(rows.end - rows.first), width = (uint32_t)problem->width;
    const int32_t first_row = (int32_t)rows.first;
    const float last_y = (float)problem->height, last_x = (float)width;
    float* DGMN_RESTRICT w0 = points.weight[0];
    float* DGMN_RESTRICT w1 = points.weight[1];
    float* DGMN_RESTRICT w2 = points.weight[2];
    float* DGMN_RESTRICT w3 = points.weight[3];
    int32_t* DGMN_RESTRICT corner = points.corner;
    int32_t* DGMN_RESTRICT inside = points.inside;
#pragma omp simd
    for (int64_t e = 0; e < n; ++e) {
        // A point at most -1, or at least the size of the map, has no corner inside. NaN is outside: it compares false.
        float py = y[e], px = x[e];
        py = py > -1.0f ? py : -2.0f;
        px = px > -1.0f ? px : -2.0f;
        py = py < last_y ? py : last_y;
        px = px < last_x ? px : last_x;
        int32_t top = (int32_t)py, left = (int32_t)px;
        top -= py < (float)top;
        left -= px < (float)left;
        const float fy = py - (float)top, fx = px - (float)left;
        const int32_t above = top - first_row;
        const int32_t upper = -((uint32_t)above < height) & 3, lower = -((uint32_t)(above + 1) < height) & 12;
        const int32_t before = -((uint32_t)left < width) & 5, after = -((uint32_t)(left + 1) < width) & 10;
        inside[e] = (upper | lower) & (before | after);
        corner[e] = top * (int32_t)width + left;
        y[e] = fy;
        x[e] = fx;
        w0[e] = (1.0f - fy) * (1.0f - fx);
        w1[e] = (1.0f - fy) * fx;
        w2[e] = fy * (1.0f - fx);
        w3[e] = fy * fx;
    }
}

// Positions from the upper left corner to corner c.
static inline int64_t corner_step(int c, int64_t width) { return (c & 1) + (c >> 1) * width; }

// <query, sampled key> of one node, as a vector of partial sums.
template <class T, int NV>
static inline Vector sampled_dot(
    const Channels<NV>& channels, const Row<T, NV>& query, const Rows<T>& key, const Points& points, int64_t e,
    int64_t width) {
    Vector dot = Simd::set(0.0f);
    const int64_t corner = points.corner[e];
    if (points.inside[e] == all_inside) {
        const T* k0 = key.row(corner);
        const T *k1 = k0 + key.step, *k2 = k0 + width * key.step, *k3 = k2 + key.step;
        const Vector w0 = Simd::set(points.weight[0][e]), w1 = Simd::set(points.weight[1][e]);
        const Vector w2 = Simd::set(points.weight[2][e]), w3 = Simd::set(points.weight[3][e]);
        for (int v = 0; v < channels.count(); ++v) {
            Vector node = Simd::mul(w0, channels.load(k0, v));
            node = Simd::fma(w1, channels.load(k1, v), node);
            node = Simd::fma(w2, channels.load(k2, v), node);
            node = Simd::fma(w3, channels.load(k3, v), node);
            dot = Simd::fma(query[v], node, dot);
        }
        return dot;
    }
    for (int c = 0; c < corners; ++c)
        if (points.inside[e] >> c & 1) {
            const T* row = key.row(corner + corner_step(c, width));
            const Vector w = Simd::set(points.weight[c][e]);
            for (int v = 0; v < channels.count(); ++v)
                dot = Simd::fma(Simd::mul(w, channels.load(row, v)), query[v], dot);
        }
    if (!points.inside[e])  // the sampled key is 0, and 0 times what is not finite is NaN
        for (int v = 0; v < channels.count(); ++v) dot = Simd::fma(Simd::set(0.0f), query[v], dot);
    return dot;
}

// <row, map> at the four corners of one node; zero outside of the map.
template <class T, int NV>
static inline void corner_dots(
    const Channels<NV>& channels, const Row<T, NV>& row, const Rows<T>& map, const Points& points, int64_t e,
    int64_t width, float* out) {
    Vector dots[corners] = {Simd::set(0.0f), Simd::set(0.0f), Simd::set(0.0f), Simd::set(0.0f)};
    const int64_t corner = points.corner[e];
    if (points.inside[e] == all_inside) {
        const T* m0 = map.row(corner);
        const T *m1 = m0 + map.step, *m2 = m0 + width * map.step, *m3 = m2 + map.step;
        for (int v = 0; v < channels.count(); ++v) {
            dots[0] = Simd::fma(row[v], channels.load(m0, v), dots[0]);
            dots[1] = Simd::fma(row[v], channels.load(m1, v), dots[1]);
            dots[2] = Simd::fma(row[v], channels.load(m2, v), dots[2]);
            dots[3] = Simd::fma(row[v], channels.load(m3, v), dots[3]);
        }
    } else {
        for (int c = 0; c < corners; ++c)
            if (points.inside[e] >> c & 1) {
                const T* m = map.row(corner + corner_step(c, width));
                Vector dot = dots[c];
                for (int v = 0; v < channels.count(); ++v) dot = Simd::fma(row[v], channels.load(m, v), dot);
                dots[c] = dot;
            }
        if (!points.inside[e])  // as in sampled_dot
            for (int v = 0; v < channels.count(); ++v) dots[0] = Simd::fma(Simd::set(0.0f), row[v], dots[0]);
    }
    Simd::sums(dots[0], dots[1], dots[2], dots[3], out);
}

// out = sum, over the nodes from e on and their corners, of scaled weight * map.
template <class T, int NV>
static inline void sampled_sum(
    const Channels<NV>& channels, const Rows<T>& map, const Points& points, int64_t e, int64_t nodes, int64_t width,
    T* out) {
    enum { chunk = chunk_of(NV) };
    const int64_t end = e + nodes;
    for (int v = 0; v < channels.count(); v += chunk) {
        Vector sum[chunk];
        for (int i = 0; i < chunk; ++i) sum[i] = Simd::set(0.0f);
        for (int64_t k = e; k < end; ++k) {
            const int64_t corner = points.corner[k];
            if (points.inside[k] == all_inside) {
                const T* m0 = map.row(corner);
                const T *m1 = m0 + map.step, *m2 = m0 + width * map.step, *m3 = m2 + map.step;
                const Vector w0 = Simd::set(points.scaled[0][k]), w1 = Simd::set(points.scaled[1][k]);
                const Vector w2 = Simd::set(points.scaled[2][k]), w3 = Simd::set(points.scaled[3][k]);
                for (int i = 0; i < chunk; ++i) {
                    sum[i] = Simd::fma(w0, channels.load(m0, v + i), sum[i]);
                    sum[i] = Simd::fma(w1, channels.load(m1, v + i), sum[i]);
                    sum[i] = Simd::fma(w2, channels.load(m2, v + i), sum[i]);
                    sum[i] = Simd::fma(w3, channels.load(m3, v + i), sum[i]);
                }
            } else {
                for (int c = 0; c < corners; ++c)
                    if (points.inside[k] >> c & 1) {
                        const T* m = map.row(corner + corner_step(c, width));
                        const Vector w = Simd::set(points.scaled[c][k]);
                        for (int i = 0; i < chunk; ++i) sum[i] = Simd::fma(w, channels.load(m, v + i), sum[i]);
                    }
                if (!points.inside[k]) {  // as in sampled_dot; the weight of the first corner is never 0
                    const Vector w = Simd::set(points.scaled[0][k]);
                    for (int i = 0; i < chunk; ++i) sum[i] = Simd::fma(Simd::set(0.0f), w, sum[i]);
                }
            }
        }
        for (int i = 0; i < chunk; ++i) channels.store(out, v + i, sum[i]);
    }
}

// e ** x to 2e-7, for x <= 0. It calls nothing, so that the compiler can vectorise loops over it.
static inline float exp_below_zero(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2 ** 23: rounds to a whole number
    const float whole = shifted - 12582912.0f;
    float r = clamped - whole * 0.693359375f;
    r -= whole * -2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    union {
        float value;
        uint32_t bits;
    } power = {shifted};
    power.bits = (power.bits + 127u) << 23;  // the low bits of `shifted` hold the whole number, also a negative one
    return x < -87.0f ? 0.0f : y * power.value;
}

static inline int threads_of(const DgmnProblem* problem, int64_t units) {
    // Waking threads costs more than a tiny map.
    const int64_t work = problem->batch * problem->height * problem->width * problem->heads * problem->dim;
    if (work < 1 << 13 || problem->threads < 1) return 1;
    return (int)(problem->threads < units ? problem->threads : units < 1 ? 1 : units);
}

// What a call computes of `units` units of work.
struct Share {
    int64_t first, end;

    Share(const DgmnProblem* problem, int64_t units)
        : first(problem->parts ? units * problem->part / problem->parts : 0),
          end(problem->parts ? units * (problem->part + 1) / problem->parts : units) {}
};

static inline float* room_for(const DgmnProblem* problem, int threads, int room) {
    const int64_t nodes = problem->kernel_size * problem->kernel_size;
    return (float*)malloc((size_t)threads * Points::floats(nodes, room) * sizeof(float));
}

// Heads that share their walks are one group. Groups run in parallel, as blocks do.
struct Group {
    Block block;
    int64_t index, first_head, heads;

    Group(const DgmnProblem* problem, int64_t unit)
        : block(block_of(problem, unit / problem->offset_heads)),
          index(unit % problem->offset_heads),
          first_head(index * (problem->heads / problem->offset_heads)),
          heads(problem->heads / problem->offset_heads) {}
};

static inline Points points_of(
    const DgmnProblem* problem, const Group& group, const float* offset, Span rows, float* memory) {
    const int64_t nodes = problem->kernel_size * problem->kernel_size, step = problem->offset_heads * nodes * 2;
    const int64_t image = group.block.image * problem->height * problem->width * step;
    Points points(memory, nodes);
    locate(problem, offset + image + group.index * nodes * 2, step, group.block, rows, points);
    return points;
}

static inline Points points_of(const DgmnProblem* problem, const Group& group, const float* offset, float* memory) {
    return points_of(problem, group, offset, Span{0, problem->height}, memory);
}

// Index of a position and head in a contiguous (B, H * W, heads) array.
static inline int64_t flat(const DgmnProblem* problem, Block block, int64_t position, int64_t head) {
    const int64_t positions = problem->height * problem->width;
    return (block.image * positions + block.first + position) * problem->heads + head;
}

// Turns dot products into softmax weights, in place. In bias and log_sum, positions of a head lie `step` entries apart.
template <int K>
static void softmax_of(
    int64_t count, int64_t any, float scale, const float* bias, int64_t step, float* DGMN_RESTRICT weight,
    float* log_sum) {
    const int64_t nodes = K ? K : any;
    float most[block_size];
    for (int64_t p = 0; p < count; ++p) {
        float* DGMN_RESTRICT row = weight + p * nodes;
        const float* DGMN_RESTRICT added = bias ? bias + p * step * nodes : 0;
        for (int64_t k = 0; k < nodes; ++k) row[k] = scale * row[k] + (added ? added[k] : 0.0f);
        float top = row[0];
        for (int64_t k = 1; k < nodes; ++k) top = row[k] > top ? row[k] : top;
        for (int64_t k = 0; k < nodes; ++k) row[k] -= top;
        most[p] = top;
    }
#pragma omp simd
    for (int64_t e = 0; e < count * nodes; ++e) weight[e] = exp_below_zero(weight[e]);
    for (int64_t p = 0; p < count; ++p) {
        float* DGMN_RESTRICT row = weight + p * nodes;
        float sum = 0.0f;
        for (int64_t k = 0; k < nodes; ++k) sum += row[k];
        const float inverse = 1.0f / sum;
        for (int64_t k = 0; k < nodes; ++k) row[k] *= inverse;
        if (log_sum) log_sum[p * step] = most[p] + __builtin_logf(sum);
    }
}

static void softmax(
    const DgmnProblem* problem, Block block, int64_t head, float scale, const float* bias, float* weight,
    float* log_sum) {
    const int64_t nodes = problem->kernel_size * problem->kernel_size, index = flat(problem, block, 0, head);
    if (bias) bias += index * nodes;
    if (log_sum) log_sum += index;
    if (nodes == 9) return softmax_of<9>(block.count, nodes, scale, bias, problem->heads, weight, log_sum);
    softmax_of<0>(block.count, nodes, scale, bias, problem->heads, weight, log_sum);
}

template <class T, int NV>
static int attention_forward(
    const DgmnProblem* problem, float scale, const DgmnMap* query, const DgmnMap* key, const DgmnMap* value,
    const float* offset, const float* bias, void* out, float* log_sum) {
    const Channels<NV> channels(problem->dim);
    const int64_t nodes = problem->kernel_size * problem->kernel_size, width = problem->width;
    const int64_t units = problem->batch * blocks_in_image(problem) * problem->offset_heads;
    const int threads = threads_of(problem, units), room = 1;
    const Share share(problem, units);
    float* memory = room_for(problem, threads, room);
    if (!memory) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = share.first; unit < share.end; ++unit) {
        const Group group(problem, unit);
        const Block block = group.block;
        float* own = memory + omp_get_thread_num() * Points::floats(nodes, room);
        const Points points = points_of(problem, group, offset, own);
        const int64_t n = block.count * nodes;
        float* weight = points.room;
        for (int64_t head = group.first_head; head < group.first_head + group.heads; ++head) {
            const Rows<T> queries(query, block.image, head), keys(key, block.image, head);
            const Rows<T> values(value, block.image, head);
            Vector dots[4] = {Simd::set(0.0f), Simd::set(0.0f), Simd::set(0.0f), Simd::set(0.0f)};
            for (int64_t p = 0, e = 0; p < block.count; ++p) {
                const Row<T, NV> q(channels, queries.row(block.first + p));
                for (int64_t k = 0; k < nodes; ++k, ++e) {
                    dots[e % 4] = sampled_dot(channels, q, keys, points, e, width);
                    if (e % 4 == 3) Simd::sums(dots[0], dots[1], dots[2], dots[3], weight + e - 3);
                }
            }
            if (n % 4) Simd::sums(dots[0], dots[1], dots[2], dots[3], weight + n / 4 * 4);
            softmax(problem, block, head, scale, bias, weight, log_sum);
            points.scale(0, n, weight);
            for (int64_t p = 0; p < block.count; ++p)
                sampled_sum(channels, values, points, p * nodes, nodes, width,
                            (T*)out + flat(problem, block, p, head) * problem->dim);
        }
    }
    free(memory);
    return 0;
}

template <class T, int NV>
static int aggregate_forward(
    const DgmnProblem* problem, const DgmnMap* value, const float* offset, const float* weight, void* out) {
    const Channels<NV> channels(problem->dim);
    const int64_t nodes = problem->kernel_size * problem->kernel_size;
    const int64_t units = problem->batch * blocks_in_image(problem) * problem->offset_heads;
    const int threads = threads_of(problem, units);
    const Share share(problem, units);
    float* memory = room_for(problem, threads, 0);
    if (!memory) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = share.first; unit < share.end; ++unit) {
        const Group group(problem, unit);
        float* own = memory + omp_get_thread_num() * Points::floats(nodes, 0);
        const Points points = points_of(problem, group, offset, own);
        for (int64_t head = group.first_head; head < group.first_head + group.heads; ++head) {
            const Rows<T> values(value, group.block.image, head);
            for (int64_t p = 0; p < group.block.count; ++p) {
                const int64_t index = flat(problem, group.block, p, head);
                points.scale(p * nodes, nodes, weight + index * nodes);
                sampled_sum(channels, values, points, p * nodes, nodes, problem->width,
                            (T*)out + index * problem->dim);
            }
        }
    }
    free(memory);
    return 0;
}

// For every node, sum_c weight_c * dots[c]: the dot product of the sampled map and the row that `dots` came from.
static inline void interpolate(const Points& points, int64_t n, const float* DGMN_RESTRICT dots, float* DGMN_RESTRICT out) {
    const float* DGMN_RESTRICT w0 = points.weight[0];
    const float* DGMN_RESTRICT w1 = points.weight[1];
    const float* DGMN_RESTRICT w2 = points.weight[2];
    const float* DGMN_RESTRICT w3 = points.weight[3];
#pragma omp simd
    for (int64_t e = 0; e < n; ++e)
        out[e] = w0[e] * dots[4 * e] + w1[e] * dots[4 * e + 1] + w2[e] * dots[4 * e + 2] + w3[e] * dots[4 * e + 3];
}

// Adds to `walk` the gradient of that sum with respect to the points, times a coefficient of the node.
static inline void add_walks(
    const Points& points, int64_t n, const float* DGMN_RESTRICT dots, const float* DGMN_RESTRICT coefficient,
    float* DGMN_RESTRICT walk) {
    const float* DGMN_RESTRICT y = points.y;
    const float* DGMN_RESTRICT x = points.x;
#pragma omp simd
    for (int64_t e = 0; e < n; ++e) {
        const float d0 = dots[4 * e], d1 = dots[4 * e + 1], d2 = dots[4 * e + 2], d3 = dots[4 * e + 3];
        walk[2 * e] += coefficient[e] * ((1.0f - x[e]) * (d2 - d0) + x[e] * (d3 - d1));
        walk[2 * e + 1] += coefficient[e] * ((1.0f - y[e]) * (d1 - d0) + y[e] * (d3 - d2));
    }
}

// The K numbers of a position and head in a contiguous (B, H * W, heads, K) array.
template <class F>
static inline F* numbers(const DgmnProblem* problem, Block block, int64_t position, int64_t head, F* data) {
    return data + flat(problem, block, position, head) * problem->kernel_size * problem->kernel_size;
}

// Stores in grad_offset what a group has summed in `walk` over its heads.
static inline void store_walks(const DgmnProblem* problem, const Group& group, const float* walk, float* grad_offset) {
    const int64_t size = 2 * problem->kernel_size * problem->kernel_size;
    const int64_t first = group.block.image * problem->height * problem->width + group.block.first;
    for (int64_t p = 0; p < group.block.count; ++p)
        memcpy(grad_offset + ((first + p) * problem->offset_heads + group.index) * size, walk + p * size,
               (size_t)size * sizeof(float));
}

// target += scaled weight * row at the corners of a node, for the N vectors from v on.
template <int NV, int N>
static inline void scatter_node(
    const Channels<NV>& channels, const Vector* row, const Points& points, int64_t e, int64_t width, float* target,
    int64_t step, int v) {
    const int64_t corner = points.corner[e];
    if (points.inside[e] == all_inside) {
        float* t0 = target + corner * step;
        float *t1 = t0 + step, *t2 = t0 + width * step, *t3 = t2 + step;
        const Vector w0 = Simd::set(points.scaled[0][e]), w1 = Simd::set(points.scaled[1][e]);
        const Vector w2 = Simd::set(points.scaled[2][e]), w3 = Simd::set(points.scaled[3][e]);
        for (int i = 0; i < N; ++i) {
            channels.store(t0, v + i, Simd::fma(w0, row[i], channels.load(t0, v + i)));
            channels.store(t1, v + i, Simd::fma(w1, row[i], channels.load(t1, v + i)));
            channels.store(t2, v + i, Simd::fma(w2, row[i], channels.load(t2, v + i)));
            channels.store(t3, v + i, Simd::fma(w3, row[i], channels.load(t3, v + i)));
        }
        return;
    }
    for (int c = 0; c < corners; ++c)
        if (points.inside[e] >> c & 1) {
            float* t = target + (corner + corner_step(c, width)) * step;
            const Vector w = Simd::set(points.scaled[c][e]);
            for (int i = 0; i < N; ++i) channels.store(t, v + i, Simd::fma(w, row[i], channels.load(t, v + i)));
        }
}

// One scatter: adds each row of a map to the corners of its nodes, times the node's weight and a common factor.
struct Scattered {
    const DgmnMap* map;
    const float* weight;
    float factor;
    float* target;  // null: nothing
};

// One thread scatters to some rows of one head of one image, in the order of the blocks. So no two threads write to the
// same place, and the sums do not depend on the number of threads.
template <class T, int NV>
static void scatter(
    const DgmnProblem* problem, int64_t image, int64_t head, Span rows, const float* offset, const Scattered* parts,
    float* memory) {
    enum { chunk = chunk_of(NV) };
    const Channels<NV> channels(problem->dim);
    const int64_t nodes = problem->kernel_size * problem->kernel_size, width = problem->width;
    const int64_t step = problem->heads * problem->dim, blocks = blocks_in_image(problem);
    const int64_t shared = problem->heads / problem->offset_heads;
    const int64_t base = image * problem->height * width * step + head * problem->dim;
    for (int64_t b = 0; b < blocks; ++b) {
        const Group group(problem, (image * blocks + b) * problem->offset_heads + head / shared);
        const Points points = points_of(problem, group, offset, rows, memory);
        const int64_t n = group.block.count * nodes;
        int32_t any = 0;
        for (int64_t e = 0; e < n; ++e) any |= points.inside[e];
        for (int i = 0; i < 2 && any && parts[i].target; ++i) {
            const Scattered part = parts[i];
            const Rows<T> map(part.map, image, head);
            float* DGMN_RESTRICT weight = points.room;
            for (int64_t p = 0; p < group.block.count; ++p) {
                const float* own = numbers(problem, group.block, p, head, part.weight);
                for (int64_t k = 0; k < nodes; ++k) weight[p * nodes + k] = part.factor * own[k];
            }
            points.scale(0, n, weight);
            for (int64_t p = 0; p < group.block.count; ++p)
                for (int v = 0; v < channels.count(); v += chunk) {
                    Vector row[chunk];
                    for (int j = 0; j < chunk; ++j) row[j] = channels.load(map.row(group.block.first + p), v + j);
                    for (int64_t e = p * nodes; e < (p + 1) * nodes; ++e)
                        scatter_node<NV, chunk>(channels, row, points, e, width, part.target + base, step, v);
                }
        }
    }
}

template <class T, int NV>
static int scatter_all(const DgmnProblem* problem, const float* offset, const Scattered* parts) {
    const int64_t heads = problem->batch * problem->heads, height = problem->height, wanted = problem->threads;
    // Cut the map into spans of rows, for which each unit finds the points of the whole map anew: that takes about 0.06 of
    // the time of scattering them all. Of all numbers of cuts, take the one with which the last thread ends first.
    int64_t cuts = 1;
    float least = 0.0f;
    for (int64_t c = 1; c <= wanted && c <= height; ++c) {
        const float time = (float)((heads * c + wanted - 1) / wanted) * (0.06f + 1.0f / (float)c);
        if (c == 1 || time < least) least = time, cuts = c;
    }
    const int64_t units = heads * cuts;
    const int threads = threads_of(problem, units), room = 1;
    float* memory = room_for(problem, threads, room);
    if (!memory) return 1;
    const int64_t nodes = problem->kernel_size * problem->kernel_size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
        float* own = memory + omp_get_thread_num() * Points::floats(nodes, room);
        const int64_t image = unit / cuts / problem->heads, head = unit / cuts % problem->heads, cut = unit % cuts;
        scatter<T, NV>(problem, image, head, Span{height * cut / cuts, height * (cut + 1) / cuts}, offset, parts, own);
    }
    free(memory);
    return 0;
}

template <class T, int NV>
static int attention_backward(
    const DgmnProblem* problem, float scale, const DgmnMap* grad_out, const DgmnMap* query, const DgmnMap* key,
    const DgmnMap* value, const float* offset, const float* bias, void* grad_query,
    float* grad_key, float* grad_value, float* grad_offset, float* grad_bias, float* affinity) {
    const Channels<NV> channels(problem->dim);
    const int64_t nodes = problem->kernel_size * problem->kernel_size, width = problem->width;
    const int64_t units = problem->batch * blocks_in_image(problem) * problem->offset_heads;
    const int threads = threads_of(problem, units), room = 12;
    float* memory = room_for(problem, threads, room);
    if (!memory) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
        const Group group(problem, unit);
        const Block block = group.block;
        float* own = memory + omp_get_thread_num() * Points::floats(nodes, room);
        const Points points = points_of(problem, group, offset, own);
        const int64_t n = block.count * nodes;
        float* DGMN_RESTRICT weight = points.room;
        float* DGMN_RESTRICT change = weight + block_size * nodes;
        float* walk = change + block_size * nodes;
        float* key_dots = walk + 2 * block_size * nodes;
        float* value_dots = key_dots + corners * block_size * nodes;
        memset(walk, 0, (size_t)(2 * n) * sizeof(float));
        for (int64_t head = group.first_head; head < group.first_head + group.heads; ++head) {
            const Rows<T> queries(query, block.image, head), keys(key, block.image, head);
            const Rows<T> values(value, block.image, head), grads(grad_out, block.image, head);
            for (int64_t p = 0, e = 0; p < block.count; ++p) {
                const Row<T, NV> q(channels, queries.row(block.first + p));
                for (int64_t k = 0; k < nodes; ++k, ++e)
                    corner_dots(channels, q, keys, points, e, width, key_dots + e * corners);
            }
            interpolate(points, n, key_dots, weight);
            softmax(problem, block, head, scale, bias, weight, 0);
            for (int64_t p = 0, e = 0; p < block.count; ++p) {
                const Row<T, NV> g(channels, grads.row(block.first + p));
                for (int64_t k = 0; k < nodes; ++k, ++e)
                    corner_dots(channels, g, values, points, e, width, value_dots + e * corners);
            }
            interpolate(points, n, value_dots, change);
            for (int64_t p = 0; p < block.count; ++p) {
                float* DGMN_RESTRICT own = change + p * nodes;
                const float* DGMN_RESTRICT own_weight = weight + p * nodes;
                float* DGMN_RESTRICT to_bias = numbers(problem, block, p, head, grad_bias);
                float mean = 0.0f;
                for (int64_t k = 0; k < nodes; ++k) mean += own_weight[k] * own[k];
                for (int64_t k = 0; k < nodes; ++k) to_bias[k] = own[k] = own_weight[k] * (own[k] - mean);
                for (int64_t k = 0; k < nodes; ++k) own[k] *= scale;
                memcpy(numbers(problem, block, p, head, affinity), own_weight, (size_t)nodes * sizeof(float));
            }
            add_walks(points, n, value_dots, weight, walk);
            add_walks(points, n, key_dots, change, walk);
            points.scale(0, n, change);
            for (int64_t p = 0; p < block.count; ++p)
                sampled_sum(channels, keys, points, p * nodes, nodes, width,
                            (T*)grad_query + flat(problem, block, p, head) * problem->dim);
        }
        store_walks(problem, group, walk, grad_offset);
    }
    free(memory);
    const Scattered parts[] = {{query, grad_bias, scale, grad_key}, {grad_out, affinity, 1.0f, grad_value}};
    return scatter_all<T, NV>(problem, offset, parts);
}

template <class T, int NV>
static int aggregate_backward(
    const DgmnProblem* problem, const DgmnMap* grad_out, const DgmnMap* value, const float* offset,
    const float* weight, float* grad_value, float* grad_offset, float* grad_weight) {
    const Channels<NV> channels(problem->dim);
    const int64_t nodes = problem->kernel_size * problem->kernel_size, width = problem->width;
    const int64_t units = problem->batch * blocks_in_image(problem) * problem->offset_heads;
    const int threads = threads_of(problem, units), room = 8;
    float* memory = room_for(problem, threads, room);
    if (!memory) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
        const Group group(problem, unit);
        const Block block = group.block;
        float* own = memory + omp_get_thread_num() * Points::floats(nodes, room);
        const Points points = points_of(problem, group, offset, own);
        const int64_t n = block.count * nodes;
        float* given = points.room;
        float* sampled = given + block_size * nodes;
        float* walk = sampled + block_size * nodes;
        float* dots = walk + 2 * block_size * nodes;
        memset(walk, 0, (size_t)(2 * n) * sizeof(float));
        for (int64_t head = group.first_head; head < group.first_head + group.heads; ++head) {
            const Rows<T> values(value, block.image, head), grads(grad_out, block.image, head);
            const size_t size = (size_t)nodes * sizeof(float);
            for (int64_t p = 0, e = 0; p < block.count; ++p) {
                const Row<T, NV> g(channels, grads.row(block.first + p));
                for (int64_t k = 0; k < nodes; ++k, ++e)
                    corner_dots(channels, g, values, points, e, width, dots + e * corners);
                memcpy(given + p * nodes, numbers(problem, block, p, head, weight), size);
            }
            interpolate(points, n, dots, sampled);
            for (int64_t p = 0; p < block.count; ++p)
                memcpy(numbers(problem, block, p, head, grad_weight), sampled + p * nodes, size);
            add_walks(points, n, dots, given, walk);
        }
        store_walks(problem, group, walk, grad_offset);
    }
    free(memory);
    const Scattered parts[] = {{grad_out, weight, 1.0f, grad_value}, {0, 0, 0.0f, 0}};
    return scatter_all<T, NV>(problem, offset, parts);
}

#include "position.h"
#if !defined(DGMN_INFERENCE)
#include "gelu.h"
#endif

// Picks the compiled case by storage type and number of vectors in a head.
#define DGMN_PICK_CHANNELS(function, T, ...)                                                      \
    switch (problem->dim % Simd::width ? 0 : problem->dim / Simd::width) {                        \
        case 1: return function<T, 1>(__VA_ARGS__);                                               \
        case 2: return function<T, 2>(__VA_ARGS__);                                               \
        case 4: return function<T, 4>(__VA_ARGS__);                                               \
    }                                                                                             \
    if (problem->dim % (4 * Simd::width) == 0) return function<T, MANY>(__VA_ARGS__);             \
    return function<T, 0>(__VA_ARGS__);
#if defined(DGMN_INFERENCE)
#define DGMN_PICK(function, ...) DGMN_PICK_CHANNELS(function, float, __VA_ARGS__)
#else
#define DGMN_PICK(function, ...)                                                                  \
    if (problem->bfloat16) {                                                                      \
        DGMN_PICK_CHANNELS(function, bfloat16, __VA_ARGS__)                                       \
    }                                                                                             \
    DGMN_PICK_CHANNELS(function, float, __VA_ARGS__)
#endif

static int pick_attention_forward(
    const DgmnProblem* problem, float scale, const DgmnMap* query, const DgmnMap* key, const DgmnMap* value,
    const float* offset, const float* bias, void* out, float* log_sum) {
    DGMN_PICK(attention_forward, problem, scale, query, key, value, offset, bias, out, log_sum)
}

static int pick_aggregate_forward(
    const DgmnProblem* problem, const DgmnMap* value, const float* offset, const float* weight, void* out) {
    DGMN_PICK(aggregate_forward, problem, value, offset, weight, out)
}

static int pick_position_forward(
    const DgmnProblem* problem, int64_t mirrored, int64_t nodes, const DgmnMap* query, const float* row_table,
    const float* column_table, float* scores) {
    DGMN_PICK(position_forward, problem, mirrored, nodes, query, row_table, column_table, scores)
}

#if defined(DGMN_INFERENCE)
static constexpr DgmnKernels kernels = {pick_attention_forward, pick_aggregate_forward, pick_position_forward};
#else
static int pick_attention_backward(
    const DgmnProblem* problem, float scale, const DgmnMap* grad_out, const DgmnMap* query, const DgmnMap* key,
    const DgmnMap* value, const float* offset, const float* bias, void* grad_query,
    float* grad_key, float* grad_value, float* grad_offset, float* grad_bias, float* affinity) {
    DGMN_PICK(attention_backward, problem, scale, grad_out, query, key, value, offset, bias, grad_query,
              grad_key, grad_value, grad_offset, grad_bias, affinity)
}

static int pick_aggregate_backward(
    const DgmnProblem* problem, const DgmnMap* grad_out, const DgmnMap* value, const float* offset,
    const float* weight, float* grad_value, float* grad_offset, float* grad_weight) {
    DGMN_PICK(aggregate_backward, problem, grad_out, value, offset, weight, grad_value, grad_offset, grad_weight)
}

static int pick_position_backward(
    const DgmnProblem* problem, int64_t mirrored, int64_t nodes, const float* grad_scores, const DgmnMap* query,
    const float* row_table, const float* column_table, void* grad_query, float* grad_row_table,
    float* grad_column_table) {
    DGMN_PICK(position_backward, problem, mirrored, nodes, grad_scores, query, row_table, column_table, grad_query,
              grad_row_table, grad_column_table)
}

static constexpr DgmnKernels kernels = {
    pick_attention_forward,  pick_aggregate_forward,  pick_position_forward,
    pick_attention_backward, pick_aggregate_backward, pick_position_backward, gelu_backward,
};
#endif
