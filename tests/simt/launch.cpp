// Launches: what the device would refuse, the settings, the log.
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <stdexcept>

#include "simt/report.h"
#include "simt/state.h"
#include "simt/watchdog.h"

namespace simt {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxGridX = std::numeric_limits<int32_t>::max(), kMaxGridY = 65535;
constexpr size_t kLogLength = 100'000;

constexpr const char *kConfiguration = "invalid configuration argument",
                     *kConfigurationCode = "cudaErrorInvalidConfiguration";
constexpr const char *kCluster =
                         "a kernel launch error has occurred due to cluster misconfiguration",
                     *kClusterCode = "cudaErrorInvalidClusterSize";

std::mutex one_launch;  // also guards the settings and the log
std::vector<LaunchRecord> records;

[[noreturn]] void refuse_variable(const char* name, const char* wanted, const std::string& value) {
  throw std::runtime_error(std::string(name) + " is " + wanted + ", not '" + value + "'");
}

uint64_t parse_seed(const std::string& text) {
  const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
  if (text.empty() || !digits || text.size() > 18) {
    refuse_variable("RNNFAST_SIMT_SEED", "a whole number", text);
  }
  return std::stoull(text);
}

Schedule parse_schedule(const std::string& text) {
  if (text == "in-order") return Schedule::kInOrder;
  if (text == "reverse") return Schedule::kReverse;
  if (text == "random") return Schedule::kRandom;
  refuse_variable("RNNFAST_SIMT_SCHEDULE", "in-order, reverse or random", text);
}

Settings settings_from_environment() {
  Settings settings;
  const char *seed = std::getenv("RNNFAST_SIMT_SEED"),
             *schedule = std::getenv("RNNFAST_SIMT_SCHEDULE");
  if (seed != nullptr) settings.seed = parse_seed(seed);
  if (schedule != nullptr) settings.schedule = parse_schedule(schedule);
  return settings;
}

// In the words of csrc/cuda/device/launch.h, then why.
[[noreturn]] void refuse(const Launch& launch, const char* error, const char* code,
                         const std::string& why) {
  throw std::runtime_error(
      std::string("launch of ") + launch.name + " failed: " + error + " [" + code + "], grid (" +
      std::to_string(launch.grid_x) + ", " + std::to_string(launch.grid_y) + ", 1), block (" +
      std::to_string(launch.threads) + ", 1, 1), shared memory " +
      std::to_string(launch.shared_bytes) +
      (launch.cluster_blocks > 1 ? ", clusters of " + std::to_string(launch.cluster_blocks) : "") +
      ": " + why);
}

// Of a thread; 0: not known.
int registers_of(const Launch& launch) {
  const auto found = settings().registers.find(launch.name);
  return found != settings().registers.end() ? found->second : 0;
}

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Registers are given to a warp in units of 256.
int registers_of_block(const Launch& launch, int registers) {
  const int warps = round_up(launch.threads, kLanes) / kLanes;
  return warps * round_up(registers * kLanes, 256);
}

int blocks_that_fit_an_sm(const Launch& launch, const Device& device, int registers) {
  const int shared = round_up(launch.shared_bytes, 128) + device.shared_reserved;
  int fit =
      std::min(device.blocks_per_sm, device.threads_per_sm / round_up(launch.threads, kLanes));
  fit = std::min(fit, device.shared_per_sm / shared);
  if (registers > 0) {
    fit = std::min(fit, device.registers_per_sm / registers_of_block(launch, registers));
  }
  return fit;
}

// A cluster lies within one GPC, its blocks anywhere there; the last GPC has what SMs remain.
int64_t resident_on(const Launch& launch, const Device& device, int registers) {
  const int64_t fit = blocks_that_fit_an_sm(launch, device, registers);
  const int size = launch.cluster_blocks;
  if (size == 1) return device.sm_count * fit;
  if (size < 1 || size > device.cluster_limit) return 0;
  const int gpcs = device.sm_count / device.sms_per_gpc;
  const int rest = device.sm_count % device.sms_per_gpc;
  return (gpcs * (device.sms_per_gpc * fit / size) + rest * fit / size) * size;
}

void require_possible_block(const Launch& launch, const Device& device, int registers) {
  if (launch.threads < 1 || launch.threads > kMaxThreads) {
    refuse(launch, kConfiguration, kConfigurationCode, "a block has 1 to 1024 threads");
  }
  if (launch.shared_bytes < 0 || launch.shared_bytes > device.shared_per_block) {
    refuse(launch, "invalid argument", "cudaErrorInvalidValue",
           "a block has at most " + std::to_string(device.shared_per_block) +
               " bytes of shared memory");
  }
  if (registers > 0 && registers_of_block(launch, registers) > device.registers_per_sm) {
    refuse(launch, "too many resources requested for launch", "cudaErrorLaunchOutOfResources",
           std::to_string(registers) + " registers a thread");
  }
}

void require_possible_clusters(const Launch& launch, const Device& device, int registers) {
  const int size = launch.cluster_blocks;
  if (size < 1 || (size > 1 && size > device.cluster_limit)) {
    refuse(launch, kCluster, kClusterCode,
           "a cluster has 1 to " + std::to_string(device.cluster_limit) + " blocks");
  }
  if (launch.grid_x % size != 0) {
    refuse(launch, kCluster, kClusterCode,
           std::to_string(launch.grid_x) + " blocks are not whole clusters");
  }
  if (size > 1 && resident_on(launch, device, registers) == 0) {
    refuse(launch, kCluster, kClusterCode, "no cluster fits the SMs of a GPC at once");
  }
}

void require_possible(const Launch& launch, const Device& device, int registers) {
  require_possible_block(launch, device, registers);
  if (launch.grid_x < 1 || launch.grid_x > kMaxGridX || launch.grid_y < 1 ||
      launch.grid_y > kMaxGridY) {
    refuse(launch, kConfiguration, kConfigurationCode,
           "a grid has 1 to 2147483647 by 1 to 65535 blocks");
  }
  require_possible_clusters(launch, device, registers);
  const int64_t fit = resident_on(launch, device, registers);
  if (launch.cooperative && launch.grid_x * launch.grid_y > fit) {
    refuse(launch, "too many blocks in cooperative launch", "cudaErrorCooperativeLaunchTooLarge",
           "at most " + std::to_string(fit) + " are resident at once");
  }
}

void record(const Run& run) {
  if (records.size() >= kLogLength)
    records.erase(records.begin(), records.begin() + kLogLength / 2);
  const Launch& launch = run.launch;
  records.push_back({launch.name, launch.grid_x, launch.grid_y, launch.threads, launch.shared_bytes,
                     launch.cooperative, launch.cluster_blocks, run.switches});
}

}  // namespace

Settings& settings() {
  static Settings settings = settings_from_environment();
  return settings;
}

int resident_blocks(const Launch& launch) {
  const std::lock_guard lock(one_launch);
  const Device& device = settings().device;
  const int registers = registers_of(launch);
  require_possible_block(launch, device, registers);
  return static_cast<int>(resident_on(launch, device, registers));
}

void run(const Launch& launch, const Body& body) {
  const std::lock_guard lock(one_launch);
  const Quiet quiet;
  require_possible(launch, settings().device, registers_of(launch));
  Run run(launch, body);
  run.blocks = launch.grid_x * launch.grid_y;
  run.number = settings().launches++;
  seed_random(settings().seed * 0x100000001B3u + static_cast<uint64_t>(run.number));
  current_run = &run;
  release(&run.start_tag);
  try {
    start_blocks();
  } catch (...) {
    drop_threads();
    current_run = nullptr;
    throw;
  }
  {
    const Watched watched(run.switches);
    run_threads();
  }
  acquire(&run.end_tag);
  if (run.failed) drop_threads();
  current_run = nullptr;
  if (run.failed) throw std::runtime_error(describe_failure(run));
  record(run);
}

void set_device(const Device& device) {
  const std::lock_guard lock(one_launch);
  settings().device = device;
}

void set_schedule(Schedule schedule) {
  const std::lock_guard lock(one_launch);
  settings().schedule = schedule;
}

void set_seed(uint64_t seed) {
  const std::lock_guard lock(one_launch);
  settings().seed = seed;
  settings().launches = 0;
}

void set_resident_threads(int threads) {
  const std::lock_guard lock(one_launch);
  settings().resident_threads = threads;
}

void set_registers(const std::string& kernel, int registers) {
  const std::lock_guard lock(one_launch);
  settings().registers[kernel] = registers;
}

std::vector<LaunchRecord> log() {
  const std::lock_guard lock(one_launch);
  return records;
}

void clear_log() {
  const std::lock_guard lock(one_launch);
  records.clear();
}

}  // namespace simt
