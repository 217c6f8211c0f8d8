// Measures what the cost model assumes of a device (csrc/cuda/plan/model.h) and prints a line of JSON
// for each rate as soon as it is known: {"name": …, "value": …, "low": …, "high": …}, or "skipped"
// or "failed" with the reason. `rates` takes half a minute; `rates --tiny` runs everything once,
// for the executor, and its numbers mean nothing; with `--absent` too, a block is waited for that
// never comes. Exit status 1 where a rate failed.
//
// A kernel is run for n rounds and for 2n; the difference is n rounds, whatever a launch costs.
// Times are the host's, around a launch and the wait for its end, the median of several.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "rates_kernels.h"

namespace {

using namespace rnnfast::cuda;

bool tiny = false;
constexpr int64_t kRatePatience = 4'000'000'000;  // clocks: two seconds

// --- the device ----------------------------------------------------------------------------------

#if defined(RNNFAST_SIMT)

void* allocate(size_t bytes) { return ::operator new(bytes, std::align_val_t(128)); }
void copy_to(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void copy_from(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void clear(void* to, size_t bytes) { std::memset(to, 0, bytes); }
void wait_for_device() {}
int multiprocessors() { return 4; }
std::string device_name() { return "executor"; }
double nominal_ghz() { return 1; }

#else

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}
void* allocate(size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, bytes));
  return p;
}
void copy_to(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
void copy_from(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
void clear(void* to, size_t bytes) { check(cudaMemset(to, 0, bytes)); }
void wait_for_device() { check(cudaDeviceSynchronize()); }
int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}
int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
std::string device_name() {
  int device = 0;
  cudaDeviceProp properties;
  check(cudaGetDevice(&device));
  check(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}
double nominal_ghz() { return attribute(cudaDevAttrClockRate) * 1e-6; }

#endif

// --- timing --------------------------------------------------------------------------------------

struct Timing {
  double median, low, high;  // ns
};

using Kernel = void (*)(RateArgs);

double seconds(const Launch& how, Kernel kernel, const RateArgs& args) {
  clear(args.counter, sizeof(unsigned));
  clear(args.late, sizeof(unsigned));
  wait_for_device();
  const auto start = std::chrono::steady_clock::now();
  launch(how, kernel, args, Stream{});
  wait_for_device();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  unsigned late = 0;
  copy_from(&late, args.late, sizeof(late));
  if (late > 0) {
    throw std::runtime_error("rnnfast: the barrier of " + std::string(how.name) + " timed out");
  }
  return took.count();
}

Timing summary(std::vector<double> ns) {
  std::sort(ns.begin(), ns.end());
  return {ns[ns.size() / 2], ns.front(), ns.back()};
}

// ns of a round.
Timing time_rounds(const Launch& how, Kernel kernel, RateArgs args, int rounds) {
  if (tiny) {
    args.rounds = std::min(rounds, 3);
    const double ns = seconds(how, kernel, args) * 1e9 / args.rounds;
    return {ns, ns, ns};
  }
  args.rounds = rounds;
  seconds(how, kernel, args);  // clocks up, code loaded
  std::vector<double> ns;
  for (int i = 0; i < 9; ++i) {
    args.rounds = rounds;
    const double once = seconds(how, kernel, args);
    args.rounds = 2 * rounds;
    ns.push_back((seconds(how, kernel, args) - once) * 1e9 / rounds);
  }
  return summary(ns);
}

// --- printing ------------------------------------------------------------------------------------

void print(const char* name, const Timing& t) {
  std::printf("{\"name\": \"%s\", \"value\": %.6g, \"low\": %.6g, \"high\": %.6g}\n", name,
              t.median, t.low, t.high);
  std::fflush(stdout);
}

void print_why(const char* name, const char* what, const std::string& why) {
  std::string plain;
  for (const char c : why) plain += c == '"' || c == '\\' || c < ' ' ? ' ' : c;
  std::printf("{\"name\": \"%s\", \"%s\": \"%s\"}\n", name, what, plain.c_str());
  std::fflush(stdout);
}

// What takes `t` ns, in something that is proportional (scale · t) or inverse to it.
Timing times(const Timing& t, double scale) {
  return {t.median * scale, t.low * scale, t.high * scale};
}
Timing rate(double amount, const Timing& t) {
  return {amount / t.median, amount / t.high, amount / t.low};
}
Timing minus(const Timing& t, double ns) { return {t.median - ns, t.low - ns, t.high - ns}; }

// --- the rates -----------------------------------------------------------------------------------

Launch shape(const char* name, int blocks, int threads = kRateThreads) {
  Launch how;
  how.name = name, how.grid_x = blocks, how.threads = threads;
  return how;
}

struct Rig {
  RateArgs args;
  double ghz = 1;
  double barrier_ns = 0;  // of a block
};

void measure_clock(Rig& rig) {
  const Timing t = time_rounds(shape("chain_rate", 1, 32), chain_rate, rig.args, 20000);
  const Timing ghz = rate(4.0 * kChain, t);
  rig.ghz = ghz.median;
  print("clock_ghz", ghz);
}

void measure_block_barrier(Rig& rig) {
  const Timing t = time_rounds(shape("block_barrier", 1), block_barrier, rig.args, 10000);
  const Timing one = times(t, 1.0 / kBarriers);
  rig.barrier_ns = one.median;
  print("block_barrier_cycles", times(one, rig.ghz));
}

// The two block barriers are counted on their own.
void measure_grid_barrier(Rig& rig) {
  Launch how = shape("grid_barrier", tiny ? 2 : std::min(64, multiprocessors()));
  how.cooperative = true;
  const Timing t = time_rounds(how, grid_barrier, rig.args, 2000);
  print("grid_barrier_ns", minus(t, tiny ? 0 : 2 * rig.barrier_ns));
}

void measure_cluster(Rig& rig) {
  constexpr int kBlocks = 8;
  const int most = tiny ? 64 : 4096;  // bytes to each peer
  Launch how = shape("cluster_exchange", kBlocks);
  how.cluster_blocks = kBlocks;
  how.shared_bytes = 16 + 2 * kBlocks * most;
  if (resident_blocks<RateArgs>(how, cluster_exchange) < kBlocks) {
    print_why("cluster_exchange_ns", "skipped", "the device has no clusters of 8 blocks");
    print_why("cluster_bytes_per_clock", "skipped", "the device has no clusters of 8 blocks");
    return;
  }
  RateArgs args = rig.args;
  args.bytes = 16;
  const Timing small = time_rounds(how, cluster_exchange, args, 5000);
  print("cluster_exchange_ns", small);
  args.bytes = most;
  const Timing large = time_rounds(how, cluster_exchange, args, 1000);
  const double more = double(most - 16) * (kBlocks - 1);
  print("cluster_bytes_per_clock",
        times(rate(more, minus(large, tiny ? 0 : small.median)), 1 / rig.ghz));
}

void measure_mma(Rig& rig) {
  const Timing t = time_rounds(shape("mma_rate", 1), mma_rate, rig.args, 20000);
  print("mma_cycles", times(t, rig.ghz / (kMmas * kRateWarps)));
}

void measure_step(Rig& rig) {
  const Timing t = time_rounds(shape("step_chain", 1), step_chain, rig.args, 10000);
  print("step_latency_cycles", times(minus(t, tiny ? 0 : rig.barrier_ns), rig.ghz));
}

void measure_special(Rig& rig) {
  const Timing t = time_rounds(shape("special_rate", 1), special_rate, rig.args, 20000);
  print("special_per_clock", times(rate(double(kSpecials) * kRateThreads, t), 1 / rig.ghz));
}

void measure_l2_latency(Rig& rig) {
  constexpr unsigned kStride = 64;  // words: a line of its own each
  std::vector<unsigned> chain(tiny ? 512 : 1 << 18);
  for (size_t i = 0; i < chain.size(); ++i) chain[i] = unsigned((i + kStride) % chain.size());
  unsigned* words = static_cast<unsigned*>(allocate(chain.size() * sizeof(unsigned)));
  copy_to(words, chain.data(), chain.size() * sizeof(unsigned));
  RateArgs args = rig.args;
  args.words = words;
  const Timing t = time_rounds(shape("l2_latency", 1, 32), l2_latency, args, 20000);
  print("l2_latency_cycles", times(t, rig.ghz));
}

void measure_l2(Rig& rig) {
  const int sms = multiprocessors();
  RateArgs args = rig.args;
  args.bytes = tiny ? 4096 : 64 * 1024;
  unsigned* words = static_cast<unsigned*>(allocate(size_t(args.bytes) * size_t(sms)));
  clear(words, size_t(args.bytes) * size_t(sms));
  args.words = words;
  const Timing one = time_rounds(shape("l2_rate", 1), l2_rate, args, 2000);
  print("l2_bytes_per_clock", times(rate(double(args.bytes), one), 1 / rig.ghz));
  const Timing all = time_rounds(shape("l2_rate", sms), l2_rate, args, 1000);
  print("l2_device_bytes_per_clock", times(rate(double(args.bytes) * sms, all), 1 / rig.ghz));
}

void measure_shared(Rig& rig) {
  const Timing t = time_rounds(shape("shared_rate", 1), shared_rate, rig.args, 5000);
  const double bytes = double(kMatrixLoads) * 512 * kRateWarps;
  print("shared_bytes_per_clock", times(rate(bytes, t), 1 / rig.ghz));
}

void measure_ffma(Rig& rig) {
  const Timing t = time_rounds(shape("ffma_rate", 1), ffma_rate, rig.args, 5000);
  const double each = double(kFfma) * kFfmaTurns * kRateThreads;
  print("ffma_per_clock", times(rate(each, t), 1 / rig.ghz));
}

void measure_dram(Rig& rig) {
  RateArgs args = rig.args;
  args.bytes = tiny ? 1 << 16 : int64_t{1} << 30;
  unsigned* words = static_cast<unsigned*>(allocate(size_t(args.bytes)));
  clear(words, size_t(args.bytes));
  args.words = words;
  const int blocks = tiny ? 2 : multiprocessors() * 8;
  const Timing t = time_rounds(shape("dram_rate", blocks), dram_rate, args, 2);
  print("dram_bytes_per_ns", rate(double(args.bytes), t));
}

void measure_launches(Rig& rig) {
  RateArgs args = rig.args;
  args.rounds = 0;
  const Launch how = shape("nothing", 1, 32);
  std::vector<double> alone, queued;
  const int count = tiny ? 2 : 200;
  for (int i = 0; i < count; ++i) alone.push_back(seconds(how, nothing, args) * 1e9);
  print("launch_ns", summary(alone));
  for (int i = 0; i < (tiny ? 1 : 20); ++i) {
    wait_for_device();
    const auto start = std::chrono::steady_clock::now();
    for (int k = 0; k < count; ++k) launch(how, nothing, args, Stream{});
    wait_for_device();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    queued.push_back(took.count() * 1e9 / count);
  }
  print("queued_launch_ns", summary(queued));
}

struct Measurement {
  const char* name;
  void (*measure)(Rig&);
};

// What the choice between strategies hangs on comes first.
constexpr Measurement kMeasurements[] = {
    {"clock_ghz", measure_clock},
    {"block_barrier_cycles", measure_block_barrier},
    {"grid_barrier_ns", measure_grid_barrier},
    {"cluster_exchange_ns", measure_cluster},
    {"mma_cycles", measure_mma},
    {"step_latency_cycles", measure_step},
    {"special_per_clock", measure_special},
    {"l2_latency_cycles", measure_l2_latency},
    {"l2_bytes_per_clock", measure_l2},
    {"shared_bytes_per_clock", measure_shared},
    {"launch_ns", measure_launches},
    {"ffma_per_clock", measure_ffma},
    {"dram_bytes_per_ns", measure_dram},
};

}  // namespace

int main(int count, char** arguments) {
  Rig rig;
  for (int i = 1; i < count; ++i) {
    tiny = tiny || std::string(arguments[i]) == "--tiny";
    rig.args.absent += std::string(arguments[i]) == "--absent";
  }
  rig.args.patience = tiny ? 10'000 : kRatePatience;
  int failed = 0;
  try {
    std::printf("{\"device\": \"%s\", \"multiprocessors\": %d, \"nominal_ghz\": %.4g}\n",
                device_name().c_str(), multiprocessors(), nominal_ghz());
    rig.args.out = static_cast<float*>(allocate(sizeof(float)));
    rig.args.counter = static_cast<unsigned*>(allocate(sizeof(unsigned)));
    rig.args.late = static_cast<unsigned*>(allocate(sizeof(unsigned)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rates: %s\n", error.what());
    return 1;
  }
  for (const Measurement& one : kMeasurements) {
    try {
      one.measure(rig);
    } catch (const std::exception& error) {
      print_why(one.name, "failed", error.what());
      ++failed;
    }
  }
  return failed == 0 ? 0 : 1;
}
