// What operators of one's own need of onnxruntime's C interface, which its Python package does not bring.
//
// Written for this library after the interface's version 20 (onnxruntime 1.20, MIT licence), which is documented in
// include/onnxruntime/core/session/onnxruntime_c_api.h of microsoft/onnxruntime. Entries of its table never move, and
// new ones come at the end. Those that are not used here are pointers without a type.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { ort_version = 20 };
enum { ort_fail = 1, ort_invalid_argument = 2 };  // error codes
enum { ort_float = 1 };  // type of a tensor's elements
enum { ort_required = 0, ort_optional = 1 };  // inputs

struct OrtStatus;  // null: success
struct OrtValue;
struct OrtShape;  // there OrtTensorTypeAndShapeInfo
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtCustomOp;

struct OrtApi {
    OrtStatus* (*CreateStatus)(int code, const char* message);
    void* unused_1[25];
    OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);
    OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain*, const OrtCustomOp*);
    OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions*, OrtCustomOpDomain*);
    void* unused_29[22];
    OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out);
    void* unused_52[8];
    OrtStatus* (*GetTensorElementType)(const OrtShape*, int* out);
    OrtStatus* (*GetDimensionsCount)(const OrtShape*, size_t* out);
    OrtStatus* (*GetDimensions)(const OrtShape*, int64_t* out, size_t count);
    void* unused_63[2];
    OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtShape** out);
    void* unused_66[19];
    OrtStatus* (*KernelInfoGetAttribute_float)(const OrtKernelInfo*, const char* name, float* out);
    OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo*, const char* name, int64_t* out);
    void* unused_87[1];
    OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext*, size_t* out);
    void* unused_89[1];
    OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext*, size_t index, const OrtValue** out);
    OrtStatus* (*KernelContext_GetOutput)(
        OrtKernelContext*, size_t index, const int64_t* sizes, size_t count, OrtValue** out);
    void* unused_92[7];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtShape*);
    void* unused_100[174];
    // Calls function(data, i) for all i < total on the session's threads, in as many batches as it likes if `batches` is 0.
    OrtStatus* (*KernelContext_ParallelFor)(
        const OrtKernelContext*, void (*function)(void* data, size_t i), size_t total, size_t batches, void* data);
};

static_assert(offsetof(OrtApi, KernelContext_ParallelFor) == 274 * sizeof(void*), "entries are missing");
static_assert(offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo) == 99 * sizeof(void*), "entries are missing");

struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t version);  // null if onnxruntime is older
    const char* (*GetVersionString)(void);
};

// One operator, as onnxruntime asks for it. Functions that may be null are so where nothing is said about them.
struct OrtCustomOp {
    uint32_t version;
    void* CreateKernel;  // replaced by CreateKernelV2
    const char* (*GetName)(const OrtCustomOp*);
    const char* (*GetExecutionProviderType)(const OrtCustomOp*);  // null for the CPU
    int (*GetInputType)(const OrtCustomOp*, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp*);
    int (*GetOutputType)(const OrtCustomOp*, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp*);
    void* KernelCompute;  // replaced by KernelComputeV2
    void (*KernelDestroy)(void* kernel);
    int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
    int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
    int (*GetVariadicInputMinArity)(const OrtCustomOp*);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
    OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
    OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
    void* InferOutputShapeFn;
    int (*GetStartVersion)(const OrtCustomOp*);
    int (*GetEndVersion)(const OrtCustomOp*);
    void *GetMayInplace, *ReleaseMayInplace, *GetAliasMap, *ReleaseAliasMap;
};
