// The forward kernels as operators of onnxruntime, domain "dgmn" (docs/export.md): a library of its own, which runs on
// the threads of onnxruntime and so needs no OpenMP. It exports RegisterCustomOps and nothing else.
#define DGMN_EXPORT static inline
#define DGMN_INFERENCE
#include "dispatch.cpp"
#include "portable.cpp"
#if defined(__x86_64__)
#include "avx2.cpp"
#include "avx512.cpp"
#endif

#include <limits.h>
#include <stdio.h>

#include "onnxruntime_api.h"

// As in ops/library.py: nodes lie at most 2**30 pixels apart, and positions have 32 bits.
enum : int64_t { max_kernel_size = 1 << 10, max_dilation = 1 << 20, max_positions = 1 << 30 };
enum { max_rank = 6, max_inputs = 5, max_parts = 64 };

#define TRY(call) \
    if (OrtStatus* status = (call)) return status

struct Operator : OrtCustomOp {
    const char* name;
    const char* inputs[max_inputs];
    size_t required;  // the inputs after these may be left out

    size_t count() const {
        size_t n = 0;
        while (n < max_inputs && inputs[n]) ++n;
        return n;
    }
};

// A node of a graph.
struct Kernel {
    const OrtApi* api;
    const Operator* op;
    int64_t kernel_size, dilation, nodes, mirrored;
    float scale;
};

struct Shape {
    int64_t sizes[max_rank];
    size_t rank;

    void print(char* text, size_t room) const {
        int length = snprintf(text, room, "(");
        for (size_t i = 0; i < rank; ++i)
            length += snprintf(text + length, room - length, i ? ", %lld" : "%lld", (long long)sizes[i]);
        snprintf(text + length, room - length, ")");
    }
};

struct Input {
    const float* data;  // null: left out
    Shape shape;
};

// The inputs of a node in one run.
struct Inputs {
    Input all[max_inputs];

    OrtStatus* read(const Kernel* kernel, OrtKernelContext* context);
};

static OrtStatus* refused(const Kernel* kernel, const char* input, const char* problem) {
    char text[512];
    snprintf(text, sizeof text, "dgmn::%s: %s %s", kernel->op->name, input, problem);
    return kernel->api->CreateStatus(ort_invalid_argument, text);
}

static OrtStatus* sizes_of(const Kernel* kernel, const char* name, const OrtShape* info, Shape* shape) {
    const OrtApi* api = kernel->api;
    int type = 0;
    TRY(api->GetTensorElementType(info, &type));
    TRY(api->GetDimensionsCount(info, &shape->rank));
    if (type != ort_float) return refused(kernel, name, "must be float32");
    if (shape->rank > max_rank) return refused(kernel, name, "has more than 6 dimensions");
    return api->GetDimensions(info, shape->sizes, shape->rank);
}

OrtStatus* Inputs::read(const Kernel* kernel, OrtKernelContext* context) {
    const OrtApi* api = kernel->api;
    size_t given = 0;
    TRY(api->KernelContext_GetInputCount(context, &given));
    for (size_t i = 0; i < max_inputs; ++i) {
        all[i].data = 0;
        if (i >= given || i >= kernel->op->count()) continue;
        const OrtValue* value = 0;
        TRY(api->KernelContext_GetInput(context, i, &value));
        if (!value) continue;
        OrtShape* info = 0;
        TRY(api->GetTensorTypeAndShape(value, &info));
        OrtStatus* status = sizes_of(kernel, kernel->op->inputs[i], info, &all[i].shape);
        api->ReleaseTensorTypeAndShapeInfo(info);
        if (status) return status;
        TRY(api->GetTensorMutableData((OrtValue*)value, (void**)&all[i].data));
        // An empty tensor need not have memory.
        static const float nothing = 0.0f;
        if (!all[i].data) all[i].data = &nothing;
    }
    for (size_t i = 0; i < kernel->op->required; ++i)
        if (!all[i].data) return refused(kernel, kernel->op->inputs[i], "is missing");
    return 0;
}

static OrtStatus* expect(const Kernel* kernel, const char* name, const Shape& got, const Shape& wanted) {
    if (got.rank == wanted.rank && !memcmp(got.sizes, wanted.sizes, got.rank * sizeof(int64_t))) return 0;
    char shapes[2][160], text[400];
    got.print(shapes[0], sizeof shapes[0]);
    wanted.print(shapes[1], sizeof shapes[1]);
    snprintf(text, sizeof text, "must have the shape %s, got %s", shapes[1], shapes[0]);
    return refused(kernel, name, text);
}

// The problem of a map (B, H, W, heads, D).
static OrtStatus* problem_of(const Kernel* kernel, const char* name, const Shape& map, DgmnProblem* problem) {
    const int64_t* n = map.sizes;
    if (map.rank != 5 || !n[1] || !n[2] || !n[3] || !n[4])
        return refused(kernel, name, "must have the shape (B, H, W, heads, D), of which only B may be zero");
    if (n[1] >= max_positions || n[2] >= max_positions || n[1] * n[2] >= max_positions)
        return refused(kernel, name, "must have fewer than 2**30 positions");
    *problem = DgmnProblem{n[0], n[1], n[2], n[3], n[4], kernel->kernel_size, kernel->dilation, 1, 0, 1, 0, 0, 0};
    return 0;
}

static Shape positions_and(const DgmnProblem& problem, int64_t last) {
    return Shape{{problem.batch, problem.height, problem.width, problem.heads, last}, 5};
}

static OrtStatus* check_offset(const Kernel* kernel, const char* name, const Shape& got, DgmnProblem* problem) {
    if (got.rank == 6 && got.sizes[3] != 1) problem->offset_heads = problem->heads;
    Shape wanted = positions_and(*problem, kernel->kernel_size * kernel->kernel_size);
    wanted.sizes[3] = problem->offset_heads;
    wanted.sizes[5] = 2;
    wanted.rank = 6;
    return expect(kernel, name, got, wanted);
}

static DgmnMap contiguous(const DgmnProblem& problem, const float* data) {
    const int64_t position = problem.heads * problem.dim;
    return DgmnMap{data, problem.height * problem.width * position, position, problem.dim};
}

static OrtStatus* output(const Kernel* kernel, OrtKernelContext* context, const Shape& shape, float** data) {
    OrtValue* value = 0;
    TRY(kernel->api->KernelContext_GetOutput(context, 0, shape.sizes, shape.rank, &value));
    return kernel->api->GetTensorMutableData(value, (void**)data);
}

// Calls `call` for all shares of a problem, on the session's threads.
template <class Call>
static OrtStatus* in_shares(const Kernel* kernel, OrtKernelContext* context, const DgmnProblem& problem, const Call& call) {
    struct Work {
        const DgmnProblem* problem;
        const Call* call;
        int64_t parts;
        int failed;

        static void share(void* data, size_t part) {
            Work* work = (Work*)data;
            DgmnProblem own = *work->problem;
            own.part = (int64_t)part;
            own.parts = work->parts;
            if ((*work->call)(&own)) __atomic_store_n(&work->failed, 1, __ATOMIC_RELAXED);
        }
    };
    const int64_t lines = problem.batch * problem.height;
    if (!lines) return 0;
    // Waking threads costs more than a tiny map.
    const bool tiny = lines * problem.width * problem.heads * problem.dim < 1 << 13;
    Work work = {&problem, &call, tiny ? 1 : lines < max_parts ? lines : (int64_t)max_parts, 0};
    if (work.parts == 1)
        Work::share(&work, 0);
    else
        TRY(kernel->api->KernelContext_ParallelFor(context, Work::share, (size_t)work.parts, 0, &work));
    return work.failed ? kernel->api->CreateStatus(ort_fail, "dgmn: no memory for the work space") : 0;
}

static OrtStatus* attention(void* self, OrtKernelContext* context) {
    const Kernel* kernel = (const Kernel*)self;
    const char* const* names = kernel->op->inputs;
    Inputs inputs;
    TRY(inputs.read(kernel, context));
    const Input &query = inputs.all[0], &key = inputs.all[1], &value = inputs.all[2], &offset = inputs.all[3];
    const Input& bias = inputs.all[4];
    DgmnProblem problem;
    TRY(problem_of(kernel, names[0], query.shape, &problem));
    TRY(expect(kernel, names[1], key.shape, query.shape));
    TRY(expect(kernel, names[2], value.shape, query.shape));
    TRY(check_offset(kernel, names[3], offset.shape, &problem));
    if (bias.data)
        TRY(expect(kernel, names[4], bias.shape, positions_and(problem, kernel->kernel_size * kernel->kernel_size)));
    float* out = 0;
    TRY(output(kernel, context, query.shape, &out));
    const DgmnMap queries = contiguous(problem, query.data), keys = contiguous(problem, key.data);
    const DgmnMap values = contiguous(problem, value.data);
    return in_shares(kernel, context, problem, [&](const DgmnProblem* share) {
        return dgmn_attention_forward(
            share, kernel->scale, &queries, &keys, &values, offset.data, bias.data, out, 0);
    });
}

static OrtStatus* aggregate(void* self, OrtKernelContext* context) {
    const Kernel* kernel = (const Kernel*)self;
    const char* const* names = kernel->op->inputs;
    Inputs inputs;
    TRY(inputs.read(kernel, context));
    const Input &value = inputs.all[0], &offset = inputs.all[1], &weight = inputs.all[2];
    DgmnProblem problem;
    TRY(problem_of(kernel, names[0], value.shape, &problem));
    TRY(check_offset(kernel, names[1], offset.shape, &problem));
    TRY(expect(kernel, names[2], weight.shape, positions_and(problem, kernel->kernel_size * kernel->kernel_size)));
    float* out = 0;
    TRY(output(kernel, context, value.shape, &out));
    const DgmnMap values = contiguous(problem, value.data);
    return in_shares(kernel, context, problem, [&](const DgmnProblem* share) {
        return dgmn_aggregate_forward(share, &values, offset.data, weight.data, out);
    });
}

static OrtStatus* position(void* self, OrtKernelContext* context) {
    const Kernel* kernel = (const Kernel*)self;
    const char* const* names = kernel->op->inputs;
    Inputs inputs;
    TRY(inputs.read(kernel, context));
    const Input &query = inputs.all[0], &rows = inputs.all[1], &columns = inputs.all[2];
    DgmnProblem problem;
    TRY(problem_of(kernel, names[0], query.shape, &problem));
    if (kernel->mirrored && problem.height != problem.width)
        return refused(kernel, names[0], "must be a square map, because of mirrored = 1");
    const int64_t more = kernel->nodes - 1;
    if (rows.data) TRY(expect(kernel, names[1], rows.shape, Shape{{problem.height + more, problem.dim}, 2}));
    if (columns.data) TRY(expect(kernel, names[2], columns.shape, Shape{{problem.width + more, problem.dim}, 2}));
    float* out = 0;
    TRY(output(kernel, context, positions_and(problem, kernel->nodes), &out));
    const DgmnMap queries = contiguous(problem, query.data);
    return in_shares(kernel, context, problem, [&](const DgmnProblem* share) {
        return dgmn_position_forward(
            share, kernel->mirrored, kernel->nodes, &queries, rows.data, columns.data, out);
    });
}

// Reads a whole number from 1 to `most`, or from 0 on if it is a switch.
static OrtStatus* read_number(const Kernel* kernel, const OrtKernelInfo* info, const char* name, int64_t most, int64_t* out) {
    TRY(kernel->api->KernelInfoGetAttribute_int64(info, name, out));
    if (*out >= (most > 1) && *out <= most) return 0;
    char text[96];
    snprintf(text, sizeof text, "must be from %d to %lld, got %lld", most > 1, (long long)most, (long long)*out);
    return refused(kernel, name, text);
}

static OrtStatus* read_attributes(Kernel* kernel, const OrtKernelInfo* info) {
    if (kernel->op->KernelComputeV2 == position) {
        TRY(read_number(kernel, info, "nodes", max_kernel_size * max_kernel_size, &kernel->nodes));
        return read_number(kernel, info, "mirrored", 1, &kernel->mirrored);
    }
    TRY(read_number(kernel, info, "kernel_size", max_kernel_size, &kernel->kernel_size));
    TRY(read_number(kernel, info, "dilation", max_dilation, &kernel->dilation));
    if (kernel->op->KernelComputeV2 != attention) return 0;
    TRY(kernel->api->KernelInfoGetAttribute_float(info, "scale", &kernel->scale));
    return __builtin_isfinite(kernel->scale) ? 0 : refused(kernel, "scale", "must be finite");
}

static OrtStatus* create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** out) {
    Kernel* kernel = (Kernel*)calloc(1, sizeof(Kernel));
    if (!kernel) return api->CreateStatus(ort_fail, "dgmn: no memory");
    kernel->api = api;
    kernel->op = static_cast<const Operator*>(op);
    OrtStatus* status = read_attributes(kernel, info);
    if (status)
        free(kernel);
    else
        *out = kernel;
    return status;
}

static Operator make(
    const char* name, OrtStatus* (*compute)(void*, OrtKernelContext*), size_t required, const char* const* inputs) {
    Operator op;
    memset(&op, 0, sizeof op);
    op.name = name;
    op.required = required;
    for (size_t i = 0; i < max_inputs && inputs[i]; ++i) op.inputs[i] = inputs[i];
    op.version = ort_version;
    op.GetName = [](const OrtCustomOp* self) { return static_cast<const Operator*>(self)->name; };
    op.GetExecutionProviderType = [](const OrtCustomOp*) { return (const char*)0; };
    op.GetInputTypeCount = [](const OrtCustomOp* self) { return static_cast<const Operator*>(self)->count(); };
    op.GetInputCharacteristic = [](const OrtCustomOp* self, size_t i) {
        return i < static_cast<const Operator*>(self)->required ? (int)ort_required : (int)ort_optional;
    };
    op.GetInputType = op.GetOutputType = [](const OrtCustomOp*, size_t) { return (int)ort_float; };
    op.GetOutputTypeCount = [](const OrtCustomOp*) { return (size_t)1; };
    op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return (int)ort_required; };
    op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };  // the default
    op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
    op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
    op.CreateKernelV2 = create;
    op.KernelComputeV2 = compute;
    op.KernelDestroy = free;
    op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    op.GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    return op;
}

static const char* const attention_inputs[] = {"query", "key", "value", "offset", "bias"};
static const char* const aggregate_inputs[] = {"value", "offset", "weight", 0};
static const char* const position_inputs[] = {"query", "rows", "columns", 0};
static const Operator operators[] = {
    make("SampledAttention", attention, 4, attention_inputs),
    make("SampledAggregate", aggregate, 3, aggregate_inputs),
    make("PositionScores", position, 1, position_inputs),
};

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
    const OrtApi* api = base->GetApi(ort_version);
    if (!api) return base->GetApi(1)->CreateStatus(ort_fail, "dgmn: its operators need onnxruntime 1.20 or newer");
    // Sessions use the domain as long as they live, and nobody says when that ends. So it stays.
    OrtCustomOpDomain* domain = 0;
    TRY(api->CreateCustomOpDomain("dgmn", &domain));
    for (const Operator& op : operators) TRY(api->CustomOpDomain_Add(domain, &op));
    return api->AddCustomOpDomain(options, domain);
}
