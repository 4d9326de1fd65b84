// The relative position term (eq. 9): dot products of every query with K rows of each table.

// Adds <query, row> for N neighbouring rows of a table, as vectors of partial sums. N sums fit into the registers.
template <int N, class T, int NV>
static inline void add_dots(const Channels<NV>& channels, const Row<T, NV>& query, const float* rows, Vector* dots) {
    for (int v = 0; v < channels.count(); ++v) {
        const Vector q = query[v];
        for (int k = 0; k < N; ++k) dots[k] = Simd::fma(q, channels.load(rows + k * channels.dim, v), dots[k]);
    }
}

// <here, column> + <there, row> for N neighbouring rows of both tables; a table may be missing.
template <int N, class T, int NV>
static inline void position_dots(
    const Channels<NV>& channels, const Row<T, NV>& here, const float* column, const Row<T, NV>& there, const float* row,
    float* out) {
    Vector dots[N];
    for (int k = 0; k < N; ++k) dots[k] = Simd::set(0.0f);
    if (column) add_dots<N, T, NV>(channels, here, column, dots);
    if (row) add_dots<N, T, NV>(channels, there, row, dots);
    for (int k = 0; k + 4 <= N; k += 4) Simd::sums(dots[k], dots[k + 1], dots[k + 2], dots[k + 3], out + k);
    for (int k = N / 4 * 4; k < N; ++k) {
        float sum[4];
        Simd::sums(dots[k], dots[k], dots[k], dots[k], sum);
        out[k] = sum[0];
    }
}

// <here, column> + <there, row> for all K rows of both tables.
template <class T, int NV>
static inline void all_position_dots(
    const Channels<NV>& channels, int64_t nodes, const Row<T, NV>& here, const float* column, const Row<T, NV>& there,
    const float* row, float* out) {
    const int64_t dim = channels.dim;
    int64_t k = 0;
    for (; k + 9 <= nodes; k += 9)  // the nodes of a kernel size of 3
        position_dots<9, T, NV>(channels, here, column ? column + k * dim : 0, there, row ? row + k * dim : 0, out + k);
    for (; k < nodes; ++k)
        position_dots<1, T, NV>(channels, here, column ? column + k * dim : 0, there, row ? row + k * dim : 0, out + k);
}

#if !defined(DGMN_INFERENCE)
// Where an index of the output lies between two of the input, and how far from the first: bilinear resizing.
struct Between {
    int64_t first, second;
    float part;

    Between(int64_t index, int64_t size, int64_t input) {
        const float place = ((float)index + 0.5f) * ((float)input / (float)size) - 0.5f;
        const float inside = place > 0.0f ? place : 0.0f;
        first = (int64_t)inside < input ? (int64_t)inside : input - 1;
        second = first + 1 < input ? first + 1 : first;
        part = inside - (float)first;
    }
};

// For maps that are not square: the height terms, at their mirrored places (W, H), are stretched to the map (H, W).
template <class T, int NV>
static int stretched_forward(
    const DgmnProblem* problem, int64_t nodes, const DgmnMap* query, const float* row_table, const float* column_table,
    float* scores) {
    enum { strip = 8 };  // rows whose terms lie side by side at the mirrored places
    const Channels<NV> channels(problem->dim);
    const int64_t dim = problem->dim, heads = problem->heads, numbers = heads * nodes;
    const int64_t height = problem->height, width = problem->width, lines = problem->batch * height;
    const int64_t in_image = (height + strip - 1) / strip, strips = problem->batch * in_image;
    float* mirrored = (float*)malloc((size_t)(lines * width * numbers + 1) * sizeof(float));
    if (!mirrored) return 1;
    const int threads = threads_of(problem, lines);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < strips; ++i) {
            const int64_t image = i / in_image, first = i % in_image * strip;
            const int64_t end = first + strip < height ? first + strip : height;
            for (int64_t x = 0; x < width; ++x)
                for (int64_t y = first; y < end; ++y)
                    for (int64_t head = 0; head < heads; ++head) {
                        const Row<T, NV> q(channels, Rows<T>(query, image, head).row(y * width + x));
                        const float* column = column_table ? column_table + (width - 1 - x) * dim : 0;
                        float* out = scores + ((image * height + y) * width + x) * numbers + head * nodes;
                        float* turned = mirrored + ((image * width + x) * height + y) * numbers + head * nodes;
                        all_position_dots<T, NV>(channels, nodes, q, column, q, 0, out);
                        all_position_dots<T, NV>(channels, nodes, q, 0, q, row_table + (height - 1 - y) * dim, turned);
                    }
        }
#pragma omp for schedule(static)
        for (int64_t line = 0; line < lines; ++line) {
            const int64_t image = line / height;
            const Between down(line % height, height, width);
            const float* above = mirrored + (image * width + down.first) * height * numbers;
            const float* below = mirrored + (image * width + down.second) * height * numbers;
            for (int64_t x = 0; x < width; ++x) {
                const Between across(x, width, height);
                const int64_t left = across.first * numbers, right = across.second * numbers;
                float* DGMN_RESTRICT out = scores + (line * width + x) * numbers;
#pragma omp simd
                for (int64_t i = 0; i < numbers; ++i) {
                    const float upper = (1.0f - across.part) * above[left + i] + across.part * above[right + i];
                    const float lower = (1.0f - across.part) * below[left + i] + across.part * below[right + i];
                    out[i] += (1.0f - down.part) * upper + down.part * lower;
                }
            }
        }
    }
    free(mirrored);
    return 0;
}
#endif

// Position (y, x) takes K rows of the row table, from H - 1 - y on, and K of the column table, from W - 1 - x on.
template <class T, int NV>
static int position_forward(
    const DgmnProblem* problem, int64_t mirrored, int64_t nodes, const DgmnMap* query, const float* row_table,
    const float* column_table, float* scores) {
    const Channels<NV> channels(problem->dim);
    const int64_t dim = problem->dim;
    const int64_t height = problem->height, width = problem->width, lines = problem->batch * height;
#if !defined(DGMN_INFERENCE)
    if (mirrored && row_table && height != width)
        return stretched_forward<T, NV>(problem, nodes, query, row_table, column_table, scores);
#endif
    const int threads = threads_of(problem, lines);
    const Share share(problem, lines);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = share.first; line < share.end; ++line) {
        const int64_t image = line / height, y = line % height;
        float* out = scores + line * width * problem->heads * nodes;
        for (int64_t x = 0; x < width; ++x) {
            const float* column = column_table ? column_table + (width - 1 - x) * dim : 0;
            const float* row = row_table ? row_table + (height - 1 - (mirrored ? x : y)) * dim : 0;
            for (int64_t head = 0; head < problem->heads; ++head, out += nodes) {
                const Rows<T> queries(query, image, head);
                const Row<T, NV> here(channels, queries.row(y * width + x));
                const Row<T, NV> there(channels, queries.row(mirrored && row ? x * width + y : y * width + x));
                all_position_dots<T, NV>(channels, nodes, here, column, there, row, out);
            }
        }
    }
    return 0;
}

// Adds gradient * query of some positions of a line, from `from` on, to N neighbouring rows of its window. Positions are
// `step` apart in the query, and `graded` in the gradients.
template <int N, class T, int NV>
static inline void add_to_window(
    const Channels<NV>& channels, const T* from, int64_t step, const float* grad, int64_t graded, int64_t count,
    float* window) {
    for (int v = 0; v < channels.count(); ++v) {
        Vector sums[N];
        for (int k = 0; k < N; ++k) sums[k] = channels.load(window + k * channels.dim, v);
        for (int64_t i = 0; i < count; ++i) {
            const Vector q = channels.load(from + i * step, v);
            for (int k = 0; k < N; ++k) sums[k] = Simd::fma(Simd::set(grad[i * graded + k]), q, sums[k]);
        }
        for (int k = 0; k < N; ++k) channels.store(window + k * channels.dim, v, sums[k]);
    }
}

// For each of K table rows: the sums of gradient * query over all positions of a row (or column) of the map, for rows
// (or columns) that lie side by side. The windows with these sums are `apart` numbers from each other.
template <class T, int NV>
static void table_windows(
    const DgmnProblem* problem, int64_t nodes, const float* grad_scores, const DgmnMap* query, Span lines,
    int along_rows, int across, float* windows, int64_t apart) {
    enum { run = 16 };  // positions of a line that stay in the cache
    const Channels<NV> channels(problem->dim);
    const int64_t width = problem->width, heads = problem->heads, positions = problem->height * width;
    const int64_t others = along_rows ? width : problem->height;
    for (int64_t image = 0; image < problem->batch; ++image)
        for (int64_t other = 0; other < others; other += run)
            for (int64_t line = lines.first; line < lines.end; ++line)
                for (int64_t head = 0; head < heads; ++head) {
                    const int64_t position = along_rows ? line * width + other : other * width + line;
                    const int64_t scored = across ? other * width + line : position;
                    const int64_t count = others - other < run ? others - other : (int64_t)run;
                    const Rows<T> queries(query, image, head);
                    const T* from = queries.row(position);
                    const float* grad = grad_scores + ((image * positions + scored) * heads + head) * nodes;
                    const int64_t step = queries.step * (along_rows ? 1 : width);
                    const int64_t graded = heads * nodes * (along_rows && !across ? 1 : width);
                    float* window = windows + line * apart;
                    int64_t k = 0;
                    for (; k + 9 <= nodes; k += 9)
                        add_to_window<9>(channels, from, step, grad + k, graded, count, window + k * channels.dim);
                    for (; k < nodes; ++k)
                        add_to_window<1>(channels, from, step, grad + k, graded, count, window + k * channels.dim);
                }
}

// One thread sums the windows of a few rows (or columns) of the map. Then all are added up in their order.
template <class T, int NV>
static int table_gradient(
    const DgmnProblem* problem, int64_t nodes, const float* grad_scores, const DgmnMap* query, int along_rows,
    int across, float* grad_table) {
    // A few lines at a time use the memory that is fetched together; their windows fit into the cache.
    enum { strip = 4, cache_line = 16 };  // a line of 64 bytes holds 16 numbers
    const int64_t length = along_rows ? problem->height : problem->width, strips = (length + strip - 1) / strip;
    // Between the windows lies what keeps threads from writing to the same cache line.
    const int64_t size = nodes * problem->dim, apart = (size / cache_line + 2) * cache_line;
    const int threads = threads_of(problem, strips);
    float* windows = (float*)calloc((size_t)length, (size_t)apart * sizeof(float));
    if (!windows) return 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < strips; ++i) {
        const int64_t end = (i + 1) * strip;
        table_windows<T, NV>(problem, nodes, grad_scores, query, Span{i * strip, end < length ? end : length},
                             along_rows, across, windows, apart);
    }
    for (int64_t i = 0; i < length; ++i) {
        float* DGMN_RESTRICT out = grad_table + (length - 1 - i) * problem->dim;
        const float* DGMN_RESTRICT window = windows + i * apart;
        for (int64_t j = 0; j < size; ++j) out[j] += window[j];
    }
    free(windows);
    return 0;
}

template <class T, int NV>
static int position_backward(
    const DgmnProblem* problem, int64_t mirrored, int64_t nodes, const float* grad_scores, const DgmnMap* query,
    const float* row_table, const float* column_table, void* grad_query, float* grad_row_table,
    float* grad_column_table) {
    enum { chunk = chunk_of(NV) };
    const Channels<NV> channels(problem->dim);
    const int64_t dim = problem->dim;
    const int64_t height = problem->height, width = problem->width, lines = problem->batch * height;
    const int threads = threads_of(problem, lines);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t line = 0; line < lines; ++line) {
        const int64_t image = line / height, y = line % height;
        for (int64_t x = 0; x < width; ++x)
            for (int64_t head = 0; head < problem->heads; ++head) {
                const float* column = column_table ? column_table + (width - 1 - x) * dim : 0;
                const float* row = row_table ? row_table + (height - 1 - y) * dim : 0;
                const int64_t here = line * width + x, there = mirrored && row ? (image * height + x) * width + y : here;
                const float* grad = grad_scores + (here * problem->heads + head) * nodes;
                const float* grad_across = grad_scores + (there * problem->heads + head) * nodes;
                T* out = (T*)grad_query + (here * problem->heads + head) * dim;
                for (int v = 0; v < channels.count(); v += chunk) {
                    Vector sum[chunk];
                    for (int i = 0; i < chunk; ++i) sum[i] = Simd::set(0.0f);
                    for (int64_t k = 0; column && k < nodes; ++k)
                        for (int i = 0; i < chunk; ++i)
                            sum[i] = Simd::fma(Simd::set(grad[k]), channels.load(column + k * dim, v + i), sum[i]);
                    for (int64_t k = 0; row && k < nodes; ++k)
                        for (int i = 0; i < chunk; ++i)
                            sum[i] = Simd::fma(Simd::set(grad_across[k]), channels.load(row + k * dim, v + i), sum[i]);
                    for (int i = 0; i < chunk; ++i) channels.store(out, v + i, sum[i]);
                }
            }
    }
    if (column_table && table_gradient<T, NV>(problem, nodes, grad_scores, query, 0, 0, grad_column_table)) return 1;
    return row_table ? table_gradient<T, NV>(problem, nodes, grad_scores, query, 1, (int)mirrored, grad_row_table) : 0;
}
