// What a device would refuse, the log, seeds; and the check for bank conflicts.
#include "toys.h"

namespace {

using namespace toys;

struct NoArgs {
  int unused;
};
RNNFAST_KERNEL(1024) nothing(RNNFAST_ARGS NoArgs) {}

template <int kBytes>
RNNFAST_KERNEL(32)
declare_shared(RNNFAST_ARGS NoArgs) {
  RNNFAST_SHARED_ARRAY(unsigned char, array, kBytes);
  array[0] = 1;
}

std::string refusal(const Launch& how) {
  return failure_of([&] { launch<NoArgs>(how, nothing, {0}, nullptr); });
}

void check_refused(const Launch& how, const std::string& part) {
  const std::string failure = refusal(how);
  CHECK_IN(contains(failure, part), failure);
}

TEST(a_refusal_names_kernel_grid_block_and_shared_memory) {
  const std::string failure = refusal({"nothing", 3, 2, 1025, 16, false});
  CHECK_IN(contains(failure,
                    "launch of nothing failed: invalid configuration argument "
                    "[cudaErrorInvalidConfiguration], "
                    "grid (3, 2, 1), block (1025, 1, 1), shared memory 16"),
           failure);
}

TEST(limits_of_a_block_and_of_a_grid) {
  CHECK(refusal({"nothing", 1, 1, 1024, 227 * 1024, false}) == "");
  check_refused({"nothing", 1, 1, 0, 0, false}, "a block has 1 to 1024 threads");
  check_refused({"nothing", 0, 1, 32, 0, false}, "a grid has 1 to");
  check_refused({"nothing", 1, 65536, 32, 0, false}, "a grid has 1 to");
  check_refused({"nothing", int64_t{1} << 31, 1, 32, 0, false}, "a grid has 1 to");
  check_refused({"nothing", 1, 1, 32, 227 * 1024 + 1, false},
                "at most 232448 bytes of shared memory");
  simt::Device small;
  small.shared_per_block = 99 * 1024;
  simt::set_device(small);
  check_refused({"nothing", 1, 1, 32, 100 * 1024, false}, "at most 101376 bytes of shared memory");
  simt::set_device({});
}

TEST(registers_count_for_all_threads_of_a_block) {
  simt::set_registers("nothing", 128);
  CHECK(refusal({"nothing", 1, 1, 512, 0, false}) == "");
  check_refused({"nothing", 1, 1, 544, 0, false}, "too many resources requested for launch");
  simt::set_registers("nothing", 0);
}

TEST(a_cooperative_launch_must_be_resident_as_a_whole) {
  simt::Device device;
  device.sm_count = 2;
  simt::set_device(device);
  const auto blocks = [](int count, int threads, int shared) {
    return Launch{"nothing", count, 1, threads, shared, true};
  };
  CHECK(refusal(blocks(2 * 32, 32, 0)) == "");
  check_refused(blocks(2 * 32 + 1, 32, 0), "too many blocks in cooperative launch");
  CHECK(refusal(blocks(2 * 2, 1024, 0)) == "");
  check_refused(blocks(2 * 2 + 1, 1024, 0), "at most 4 are resident at once");
  CHECK(refusal(blocks(2, 32, 200 * 1024)) == "");
  check_refused(blocks(3, 32, 200 * 1024), "at most 2 are resident at once");
  simt::set_registers("nothing", 255);
  check_refused(blocks(3, 256, 0), "at most 2 are resident at once");
  simt::set_registers("nothing", 0);
  CHECK(refusal({"nothing", 100, 1, 32, 0, false}) == "");
  simt::set_device({});
}

FAULT_TEST(static_shared_memory_has_limits_too) {
  const auto run = [](auto kernel, int dynamic) {
    return failure_of([&] {
      launch<NoArgs>({"declare_shared", 1, 1, 32, dynamic, false}, kernel, {0}, nullptr);
    });
  };
  CHECK(run(declare_shared<48 * 1024>, 179 * 1024) == "");
  CHECK(contains(run(declare_shared<48 * 1024 + 1>, 0), "static shared memory of 49153 bytes"));
  CHECK(contains(run(declare_shared<48 * 1024>, 180 * 1024),
                 "with the dynamic 184320 at most 232448"));
}

TEST(the_log_has_every_launch_that_ended) {
  simt::clear_log();
  refusal({"refused", 0, 1, 32, 0, false});
  refusal({"first", 2, 3, 64, 128, false});
  refusal({"second", 1, 1, 32, 0, true});
  const std::vector<simt::LaunchRecord> log = simt::log();
  CHECK(log.size() == 2);
  CHECK(log[0].kernel == "first" && log[0].grid_x == 2 && log[0].grid_y == 3);
  CHECK(log[0].threads == 64 && log[0].shared_bytes == 128 && !log[0].cooperative);
  CHECK(log[1].kernel == "second" && log[1].cooperative && log[1].switches >= 32);
}

// ---- seeds

struct OrderArgs {
  int* order;  // [128]
  int* next;
};

RNNFAST_KERNEL(128) take_numbers(RNNFAST_ARGS OrderArgs args) {
  store(args.order + thread_index(), atomic_add<Scope::kDevice>(args.next, 1));
}

std::vector<int> order_of_threads() {
  std::vector<int> order(128);
  int next = 0;
  launch<OrderArgs>({"take_numbers", 1, 1, 128, 0, false}, take_numbers, {order.data(), &next},
                    nullptr);
  return order;
}

TEST(a_seed_gives_one_order_and_another_seed_another) {
  simt::set_seed(7);
  const std::vector<int> first = order_of_threads(), second = order_of_threads();
  simt::set_seed(7);
  CHECK(order_of_threads() == first);
  CHECK(order_of_threads() == second);
  CHECK(first != second);
  simt::set_seed(8);
  CHECK(order_of_threads() != first);
  simt::set_schedule(simt::Schedule::kInOrder);
  const std::vector<int> in_order = order_of_threads();
  simt::set_schedule(simt::Schedule::kReverse);
  const std::vector<int> reverse = order_of_threads();
  simt::set_schedule(simt::Schedule::kRandom);
  for (int t = 0; t < 128; ++t) CHECK(in_order[t] == t && reverse[t] == 127 - t);
}

// ---- banks

template <class F>
int conflicts(int width, F address_of) {
  std::array<uint32_t, 32> addresses;
  for (int l = 0; l < 32; ++l) addresses[l] = static_cast<uint32_t>(address_of(l));
  return simt::bank_conflicts(addresses, width);
}

TEST(bank_conflicts_are_counted_in_extra_passes) {
  CHECK(conflicts(4, [](int l) { return 4 * l; }) == 0);
  CHECK(conflicts(4, [](int) { return 64; }) == 0);
  CHECK(conflicts(4, [](int l) { return 8 * l; }) == 1);
  CHECK(conflicts(4, [](int l) { return 128 * l; }) == 31);
  CHECK(conflicts(2, [](int l) { return 2 * l; }) == 0);
  CHECK(conflicts(2, [](int l) { return 128 * (l / 2) + 2 * (l % 2); }) == 15);
  CHECK(conflicts(8, [](int l) { return 8 * l; }) == 0);
  CHECK(conflicts(8, [](int l) { return 128 * (l % 16) + 2048 * (l / 16); }) == 30);
  CHECK(conflicts(16, [](int l) { return 16 * l; }) == 0);
  CHECK(conflicts(16, [](int l) { return 256 * l; }) == 28);
  CHECK(conflicts(4, [](int l) { return l == 3 ? 128 : l < 2 ? 0 : int(simt::kNoAccess); }) == 1);
}

// Rows of 256 bytes lie in the same banks; 16 more bytes a row take each to its own.
TEST(the_pad_of_16_bytes_frees_ldmatrix_of_conflicts) {
  CHECK(conflicts(16, [](int l) { return l % 8 * 256 + l / 8 * 16; }) == 28);
  CHECK(conflicts(16, [](int l) { return l % 8 * 272 + l / 8 * 16; }) == 0);
}

}  // namespace
