#include <cmath>
#include <stdexcept>

#include "cuda/plan/model.h"

namespace rnnfast::cuda {
namespace {

constexpr std::string_view kGuide = "NVIDIA, CUDA C++ Programming Guide";
constexpr std::string_view kSheet = "NVIDIA, data sheet";
constexpr std::string_view kWhitepaper = "NVIDIA, whitepaper of the architecture";
constexpr std::string_view kAssumed = "";

// Cycles of an SM for one mma of 16x8x16 16-bit values, or of 16x8x8 in tf32.
double mma_cycles(int sm) {
  if (sm == 80) return 2;
  if (sm == 90) return 1.6;  // mma.sync does not reach the rate of wgmma, which is 1
  if (sm == 100 || sm == 103) return 1.6;
  return 8;  // desktop parts, with fp32 accumulators
}

std::string_view mma_source(int sm) {
  if (sm == 80) return "NVIDIA, A100 whitepaper: 312 TFLOPS";
  if (sm == 86 || sm == 89 || sm == 120) return "NVIDIA, whitepapers of GeForce RTX 30, 40, 50";
  return kAssumed;
}

double ffma_per_clock(int sm) { return sm <= 80 ? 64 : 128; }

double dram_bytes_per_ns(int sm) {
  switch (sm) {
    case 75:
      return 320;  // T4
    case 80:
      return 2039;  // A100 80 GB SXM
    case 90:
      return 3350;  // H100 SXM
    case 100:
      return 8000;  // B200
    default:
      return 1008;  // RTX 4090
  }
}

double l2_bytes(int sm) {
  constexpr double kMega = 1024 * 1024;
  switch (sm) {
    case 75:
      return 4 * kMega;  // T4
    case 80:
      return 40 * kMega;  // A100
    case 86:
      return 6 * kMega;  // RTX 3090
    case 90:
      return 50 * kMega;  // H100
    case 100:
    case 103:
      return 126 * kMega;  // B200
    case 120:
      return 96 * kMega;  // RTX 5090
    default:
      return 72 * kMega;  // RTX 4090
  }
}

bool dram_is_published(int sm) { return sm == 75 || sm == 80 || sm == 89 || sm == 90 || sm == 100; }
bool l2_is_published(int sm) { return sm == 86 || sm == 120 || dram_is_published(sm); }

}  // namespace

Device device_by_name(std::string_view name) {
  if (name == "A100") return {80, 108, 163 * 1024, 65536, 1.41};
  if (name == "H100") return {90, 132, 227 * 1024, 65536, 1.83};
  if (name == "RTX 4090") return {89, 128, 99 * 1024, 65536, 2.52};
  if (name == "B200") return {100, 148, 227 * 1024, 65536, 1.85};
  if (name == "T4") return {75, 40, 64 * 1024, 65536, 1.59};
  throw std::invalid_argument("no device is called '" + std::string(name) +
                              "'; there are: A100, H100, RTX 4090, B200, T4");
}

Rates rates_of(const Device& device) {
  Rates r;
  r.mma_cycles = mma_cycles(device.sm);
  r.ffma_per_clock = ffma_per_clock(device.sm);
  r.special_per_clock = 16;
  r.issue_per_clock = 4;
  r.shared_bytes_per_clock = 128;
  r.l2_bytes_per_clock = 32;
  r.l2_device_bytes_per_clock = 5120;
  r.l2_latency_cycles = 270;
  r.l2_line_cycles = 2;  // a guess
  r.l2_bytes = l2_bytes(device.sm);
  r.cluster_bytes_per_clock = 32;
  r.dram_bytes_per_ns = dram_bytes_per_ns(device.sm);
  r.dram_latency_cycles = 500;  // a guess
  r.pointwise_bytes_per_clock = 16;
  r.product_efficiency = 0.3;
  r.step_latency_cycles = 220;
  r.block_barrier_cycles = 30;
  r.cluster_exchange_ns = 200;
  r.grid_barrier_ns = 800;
  r.gpc_sms = device.sm >= 100 ? 18 : 17;
  r.launch_ns = 4000;
  r.queued_launch_ns = 2500;
  r.product_host_ns = 8000;  // 7 to 9 us, by reading what ATen and cuBLAS do for it
  return r;
}

std::vector<RateInfo> rate_list(const Device& device) {
  const int sm = device.sm;
  const std::string_view l2 = sm == 80 ? "NVIDIA, A100 whitepaper" : kAssumed;
  return {
      {"mma_cycles", &Rates::mma_cycles, "clocks of an SM", mma_source(sm)},
      {"ffma_per_clock", &Rates::ffma_per_clock, "of an SM in a clock", kGuide},
      {"special_per_clock", &Rates::special_per_clock, "of an SM in a clock", kGuide},
      {"issue_per_clock", &Rates::issue_per_clock, "of an SM in a clock", kGuide},
      {"shared_bytes_per_clock", &Rates::shared_bytes_per_clock, "bytes of an SM in a clock",
       kGuide},
      {"l2_bytes_per_clock", &Rates::l2_bytes_per_clock, "bytes of an SM in a clock", kAssumed},
      {"l2_device_bytes_per_clock", &Rates::l2_device_bytes_per_clock,
       "bytes of the device in a clock", l2},
      {"l2_latency_cycles", &Rates::l2_latency_cycles, "clocks", kAssumed},
      {"l2_line_cycles", &Rates::l2_line_cycles, "clocks", kAssumed},
      {"l2_bytes", &Rates::l2_bytes, "bytes", l2_is_published(sm) ? kWhitepaper : kAssumed},
      {"cluster_bytes_per_clock", &Rates::cluster_bytes_per_clock, "bytes of an SM in a clock",
       kAssumed},
      {"dram_bytes_per_ns", &Rates::dram_bytes_per_ns, "bytes in a ns",
       dram_is_published(sm) ? kSheet : kAssumed},
      {"dram_latency_cycles", &Rates::dram_latency_cycles, "clocks", kAssumed},
      {"pointwise_bytes_per_clock", &Rates::pointwise_bytes_per_clock, "bytes of an SM in a clock",
       kAssumed},
      {"product_efficiency", &Rates::product_efficiency, "share of the peak", kAssumed},
      {"step_latency_cycles", &Rates::step_latency_cycles, "clocks", kAssumed},
      {"block_barrier_cycles", &Rates::block_barrier_cycles, "clocks", kAssumed},
      {"cluster_exchange_ns", &Rates::cluster_exchange_ns, "ns", kAssumed},
      {"grid_barrier_ns", &Rates::grid_barrier_ns, "ns", kAssumed},
      {"gpc_sms", &Rates::gpc_sms, "SMs", kAssumed},
      {"launch_ns", &Rates::launch_ns, "ns", kAssumed},
      {"queued_launch_ns", &Rates::queued_launch_ns, "ns", kAssumed},
      {"product_host_ns", &Rates::product_host_ns, "ns", kAssumed},
  };
}

Rates with_rates(Rates rates, const std::map<std::string, double>& replaced) {
  const std::vector<RateInfo> list = rate_list(Device{});
  for (const auto& [name, value] : replaced) {
    std::string known;
    bool found = false;
    for (const RateInfo& rate : list) {
      known += (known.empty() ? "" : ", ") + std::string(rate.name);
      if (rate.name == name) rates.*rate.value = value, found = true;
    }
    if (!found)
      throw std::invalid_argument("no rate is called '" + name + "'; there are: " + known);
    if (!(value > 0) || !std::isfinite(value)) {
      throw std::invalid_argument("the rate " + name + " is not a positive number");
    }
  }
  return rates;
}

}  // namespace rnnfast::cuda
