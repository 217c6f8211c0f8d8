// Two devices without a GPU: a CUDA runtime and a cuBLAS that are loaded before torch's, so that
// torch and the extension find these. Memory is the host's and holds whatever it held; kernels do
// nothing but are noted: on which device and stream, and whether a driver would have taken them.
// For rnnfast's kernels and products; what else of the runtime is called is the true one's.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

// Only what it keeps: nothing is recorded.
struct CUgraph_st {
  unsigned long long id;
  std::vector<cudaUserObject_t> kept = {};
};
struct CUuserObject_st {
  void* what;
  cudaHostFn_t end;
};
struct CUstream_st {
  int device;
  cudaGraph_t capture = nullptr;
};
struct CUevent_st {
  int device;
};

namespace {

// Of the kinds of an H100 and an A100: what differs for a plan and for a launch.
constexpr struct {
  int major, minor, processors, opt_in;
} kDevices[] = {{9, 0, 132, 227 * 1024}, {8, 0, 108, 163 * 1024}};
constexpr int kCount = 2;

struct Runtime {
  std::mutex mutex;
  std::map<const void*, std::string> names;                  // of kernels
  std::map<std::pair<int, const void*>, int> dynamic_limit;  // by device and kernel
  std::string log;                                           // a line each, as devices_child.Noted
};
Runtime& runtime() {  // torch registers kernels before this file's own objects are made
  static Runtime& all = *new Runtime;
  return all;
}
thread_local int current = 0;
thread_local int tag = -1;
thread_local cudaError_t last = cudaSuccess;

cudaError_t ended(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

std::atomic<int> captures = 0;  // under way

// What makes the host wait for the device is an error wherever a stream is captured.
cudaError_t waited() {
  return captures > 0 ? ended(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

bool is_foreign(cudaStream_t stream) { return stream && stream->device != current; }

void note(const std::string& what, cudaStream_t stream, size_t shared = 0) {
  const std::string on = stream ? std::to_string(stream->device) : "-";
  runtime().log += what + " " + std::to_string(current) + " " + on + " " + std::to_string(tag) +
                   " " + std::to_string(shared) + "\n";
}

cudaError_t launch(const void* kernel, size_t shared, cudaStream_t stream) {
  Runtime& all = runtime();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (is_foreign(stream)) return ended(cudaErrorInvalidResourceHandle);
  if (shared > 48 * 1024 && int(shared) > all.dynamic_limit[{current, kernel}]) {
    return ended(cudaErrorInvalidValue);
  }
  const auto name = all.names.find(kernel);
  if (name != all.names.end() && name->second.find("rnnfast") != std::string::npos) {
    note(name->second, stream, shared);
  }
  return cudaSuccess;
}

}  // namespace

extern "C" {

// --- for the test --------------------------------------------------------------------------------

// What has been launched since the last call, up to `size` - 1 characters of it.
void stand_in_log(char* text, size_t size) {
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  std::strncpy(text, runtime().log.c_str(), size - 1);
  text[size - 1] = 0;
  runtime().log.clear();
}
void stand_in_tag(int of_this_thread) { tag = of_this_thread; }

// --- kernels -------------------------------------------------------------------------------------

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  runtime().names[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
thread_local struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t shared,
                               cudaStream_t stream) {
  return launch(kernel, shared, stream);
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t shared,
                             cudaStream_t stream) {
  return launch(kernel, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* kernel, void**) {
  for (unsigned i = 0; i < how->numAttrs; ++i) {
    if (how->attrs[i].id == cudaLaunchAttributeClusterDimension && kDevices[current].major < 9) {
      return ended(cudaErrorInvalidClusterSize);
    }
  }
  return launch(kernel, how->dynamicSmemBytes, how->stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value > kDevices[current].opt_in) return ended(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  runtime().dynamic_limit[{current, kernel}] = value;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = 15;
  return kDevices[current].major < 9 ? ended(cudaErrorInvalidClusterSize) : cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int,
                                                                   size_t, unsigned) {
  *blocks = 1;
  return cudaSuccess;
}

// --- devices -------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kCount;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kCount) return ended(cudaErrorInvalidDevice);
  current = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {};
  std::strcpy(properties->name, "stand-in");
  properties->major = kDevices[device].major, properties->minor = kDevices[device].minor;
  properties->multiProcessorCount = kDevices[device].processors;
  properties->sharedMemPerBlockOptin = kDevices[device].opt_in;
  properties->totalGlobalMem = size_t(1) << 30;
  properties->warpSize = 32, properties->regsPerMultiprocessor = 65536;
  properties->maxThreadsPerBlock = 1024, properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxGridSize[0] = 1 << 30;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const auto& of = kDevices[device];
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return *value = of.major, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = of.minor, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = of.processors, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = of.opt_in, cudaSuccess;
    case cudaDevAttrMaxRegistersPerBlock:
      return *value = 65536, cudaSuccess;
    case cudaDevAttrClockRate:
      return *value = 1500000, cudaSuccess;
    case cudaDevAttrClusterLaunch:
      return *value = of.major >= 9, cudaSuccess;
    default:
      return *value = 0, cudaSuccess;
  }
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return waited(); }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last; }

// --- memory --------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  return *memory ? cudaSuccess : ended(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  note("pinned", nullptr);
  return cudaMalloc(memory, bytes);
}
cudaError_t cudaFreeHost(void* memory) {
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  note("unpinned", nullptr);
  return cudaFree(memory);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t(1) << 30;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return waited();
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (is_foreign(stream)) return ended(cudaErrorInvalidResourceHandle);
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (is_foreign(stream)) return ended(cudaErrorInvalidResourceHandle);
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

// --- streams and events --------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = new CUstream_st{current};
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return waited(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return is_foreign(stream) ? ended(cudaErrorInvalidResourceHandle) : cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{current};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited(); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const int device = stream ? stream->device : current;
  return event->device == device ? cudaSuccess : ended(cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

// --- graphs --------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  static unsigned long long id = 0;
  stream->capture = new CUgraph_st{++id};
  ++captures;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->capture, nullptr);
  --captures;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool captures = stream && stream->capture;
  *status = captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  cudaStreamIsCapturing(stream, status);
  if (*status == cudaStreamCaptureStatusNone) return cudaSuccess;
  if (id) *id = stream->capture->id;
  if (graph) *graph = stream->capture;
  return cudaSuccess;
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t* object, void* what, cudaHostFn_t end, unsigned,
                                 unsigned) {
  *object = new CUuserObject_st{what, end};
  return cudaSuccess;
}
cudaError_t cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t object, unsigned,
                                      unsigned) {
  graph->kept.push_back(object);
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph,
                                          unsigned long long) {
  *made = reinterpret_cast<cudaGraphExec_t>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  for (const cudaUserObject_t object : graph->kept) {
    object->end(object->what);
    delete object;
  }
  delete graph;
  return cudaSuccess;
}

// --- the driver's own, which torch opens as libcuda.so.1 -----------------------------------------

int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return 0;
}
int cuCtxGetCurrent(void** context) {
  *context = &runtime();  // one, whatever it is
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "not of the stand-in";
  return 0;
}
#define NOT_HERE(name) \
  int name() { return 1; }
NOT_HERE(cuCtxSetCurrent)
NOT_HERE(cuDeviceGet)
NOT_HERE(cuDeviceGetAttribute)
NOT_HERE(cuDevicePrimaryCtxRetain)
NOT_HERE(cuFuncGetAttribute)
NOT_HERE(cuFuncSetAttribute)
NOT_HERE(cuFuncSetCacheConfig)
NOT_HERE(cuLaunchCooperativeKernel)
NOT_HERE(cuLaunchKernel)
NOT_HERE(cuLinkAddData_v2)
NOT_HERE(cuLinkComplete)
NOT_HERE(cuLinkCreate_v2)
NOT_HERE(cuModuleGetFunction)
NOT_HERE(cuModuleLoad)
NOT_HERE(cuModuleLoadData)
NOT_HERE(cuModuleLoadDataEx)
NOT_HERE(cuModuleUnload)
NOT_HERE(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NOT_HERE(cuPointerGetAttribute)
NOT_HERE(cuTensorMapEncodeTiled)

// --- products, with a handle and its stream of one device ----------------------------------------

struct Handle {
  int device;
  cudaStream_t stream;
};

int product(const Handle* handle) {
  constexpr int kNotInitialized = 1;
  const std::lock_guard<std::mutex> lock(runtime().mutex);
  if (handle->device != current || is_foreign(handle->stream)) return kNotInitialized;
  note("product", handle->stream);
  return 0;
}

int cublasCreate_v2(Handle** handle) {
  *handle = new Handle{current, nullptr};
  return 0;
}
int cublasDestroy_v2(Handle*) { return 0; }
int cublasSetStream_v2(Handle* handle, cudaStream_t stream) {
  handle->stream = stream;
  return 0;
}
int cublasSetWorkspace_v2(Handle*, void*, size_t) { return 0; }
int cublasSetMathMode(Handle*, int) { return 0; }
int cublasGetMathMode(Handle*, int* mode) { return *mode = 0; }
int cublasSetPointerMode_v2(Handle*, int) { return 0; }
int cublasGetPointerMode_v2(Handle*, int* mode) { return *mode = 0; }
int cublasSgemm_v2(Handle* handle, ...) { return product(handle); }
int cublasDgemm_v2(Handle* handle, ...) { return product(handle); }
int cublasGemmEx(Handle* handle, ...) { return product(handle); }
int cublasSgemmStridedBatched(Handle* handle, ...) { return product(handle); }
int cublasGemmStridedBatchedEx(Handle* handle, ...) { return product(handle); }

}  // extern "C"
