// The turn of launches whose blocks wait for one another (csrc/ops_cuda/turn.cpp), of scans
// and of clipping, against a driver that stands in for CUDA's. Ends with 1 and a line for each
// launch that could have met another one on its device, and for each thing else that is wrong.
#include "ops_cuda/turn.h"

#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "clip/cuda.h"

// What a stream's work comes after: the launches of its device, or of one capture.
struct CUstream_st {
  int device;
  unsigned long long capture = 0;
  std::set<int> after = {};
};

struct CUevent_st {
  int device;
  unsigned long long capture = 0;
  std::set<int> after = {};
};

namespace {

using Domain = std::pair<int, unsigned long long>;

std::mutex driver;  // of what follows
std::map<Domain, std::set<int>> launched;
std::map<int, int> events;  // by device
int calls = 0, number = 0;
std::atomic<int> wrong = 0;
thread_local CUstream_st* current = nullptr;

#define EXPECT(condition) \
  if (!(condition)) ++wrong, std::printf("line %d: %s\n", __LINE__, #condition)

}  // namespace

extern "C" {

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorStreamCaptureIsolation ? "another capture's event" : "refused";
}
cudaError_t cudaGetDevice(int* device) {
  *device = current->device;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id
#if CUDART_VERSION >= 13000
                                     ,
                                     cudaGraph_t*, const cudaGraphNode_t**,
                                     const cudaGraphEdgeData**, size_t*
#endif
) {
  const std::lock_guard<std::mutex> lock(driver);
  ++calls;
  *status = stream->capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (stream->capture) *id = stream->capture;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  const std::lock_guard<std::mutex> lock(driver);
  ++calls, ++events[current->device];
  *event = new CUevent_st{current->device};
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(driver);
  ++calls;
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->capture = stream->capture, event->after = stream->after;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::lock_guard<std::mutex> lock(driver);
  ++calls;
  if (event->capture != stream->capture) return cudaErrorStreamCaptureIsolation;
  stream->after.insert(event->after.begin(), event->after.end());
  return cudaSuccess;
}

}  // extern "C"

namespace {

// A launch whose blocks wait: it comes after all such launches before it.
void launch(CUstream_st& stream) {
  std::this_thread::yield();
  const std::lock_guard<std::mutex> lock(driver);
  std::set<int>& before = launched[{stream.device, stream.capture}];
  for (const int one : before) {
    if (stream.after.count(one)) continue;
    ++wrong, std::printf("device %d: launch %d may meet launch %d\n", stream.device, number, one);
  }
  before.insert(number);
  stream.after.insert(number++);
}

void scan(CUstream_st& stream) {
  current = &stream;
  rnnfast::GridTurn turn(true, &stream);
  launch(stream);
  turn.launched();
}

void clip(CUstream_st& stream, int task, int grid) {
  current = &stream;
  rnnfast::cuda::ClipArgs args;
  args.task = task;
  rnnfast::cuda::launch_clip_in_turn<rnnfast::GridTurn>(args, grid, &stream);
}

}  // namespace

namespace rnnfast::cuda {
void launch_clip(const ClipArgs& args, int grid, Stream stream) {
  if (clip_meets(args, grid)) launch(*stream);
}
}  // namespace rnnfast::cuda

int main() {
  using namespace rnnfast::cuda;

  {  // streams of a device by turns, clipping among them
    CUstream_st one{0}, two{0}, three{0};
    scan(one), scan(two), clip(three, kClipNorm, 8), scan(one);
    clip(two, kClipNorm | kClipScale, 2), clip(one, kClipNorm, 8), scan(three);
    EXPECT((launched[{0, 0}].size() == 7));
  }
  {  // blocks that don't wait need no turn
    CUstream_st stream{0};
    const int before = calls;
    clip(stream, kClipScale, 8), clip(stream, kClipClamp, 8), clip(stream, kClipNorm, 1);
    rnnfast::GridTurn none(false, &stream);
    none.launched();
    EXPECT(calls == before && stream.after.empty());
  }
  {  // devices don't wait for one another
    CUstream_st first{0}, second{1}, other{1};
    scan(first), scan(second), scan(first), scan(other);
    EXPECT(other.after.size() == 2 && (launched[{1, 0}].size() == 2));
  }
  {  // a capture is by itself, and many of them need no more events than a few
    CUstream_st plain{0}, far{1};
    for (unsigned long long id = 1; id <= 100; ++id) {
      CUstream_st one{0, id}, two{0, id}, elsewhere{1, id + 1000};
      scan(one), scan(two), scan(plain), scan(one), scan(elsewhere), scan(far);
      EXPECT(one.after.size() == 3 && elsewhere.after.size() == 1);
    }
    EXPECT(events[0] == 17 && events[1] == 17);  // 16 of captures
  }
  {  // threads, each with streams of its own on both devices
    std::vector<std::thread> threads;
    for (int n = 0; n < 3; ++n) {
      threads.emplace_back([n] {
        CUstream_st first{0}, second{1};
        for (int i = 0; i < 100; ++i) {
          scan(first), scan(second);
          clip(n % 2 ? first : second, kClipNorm, 8);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT(events[0] == 17 && events[1] == 17);
  }
  return wrong == 0 ? 0 : 1;
}
