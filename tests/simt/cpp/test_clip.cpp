// The clip kernel on the executor, against sums in long double; and the faults that it must catch.
#include "clip_list.h"

namespace {

using namespace clip_list;

}  // namespace

TEST(norm_and_scale_in_one_launch) {
  for (const double p : {2.0, 1.0, kInf, 3.0, 0.5, 2.5}) {
    Gradients gradients = mixed();
    const double want = norm_of(gradients, p);
    Run run(gradients, p, kBoth, want / 3);
    simt::clear_log();
    run.launch_it();
    CHECK(simt::log().size() == 1);
    CHECK(simt::log()[0].kernel == "clip" && simt::log()[0].cooperative);
    const std::string what = "p = " + check::show(p);
    CHECK_IN(near_to(run.wide, want, 1e-6), what + ": " + check::show(run.wide));
    CHECK_IN(run.rounded == static_cast<float>(run.wide), what);
    CHECK_IN(run.meet[0] == 0 && run.meet[1] == 0, what);
    check_scaled(gradients, want / 3 / (want + 1e-6), what);
  }
}

TEST(every_grid_and_schedule_has_its_own_bits_always_the_same) {
  for (const int blocks : {1, 2, 7, 30}) {
    std::vector<double> first;
    for (int seed = 1; seed <= 10; ++seed) {
      simt::set_seed(seed);
      Gradients gradients;
      for (int i = 0; i < 3; ++i)
        gradients.emplace_back(DType::kFloat32, std::vector<double>(900, 0.1 * (i + 1)));
      Run run(gradients, 2, kBoth, 1, blocks);
      run.launch_it();
      std::vector<double> all = {run.wide};
      for (const Gradient& g : gradients) {
        const std::vector<double> values = g.values();
        all.insert(all.end(), values.begin(), values.end());
      }
      if (first.empty()) first = all;
      CHECK(all == first);
    }
  }
}

TEST(a_launch_leaves_the_counters_for_the_next) {
  Gradients gradients = mixed();
  Run run(gradients, 2, kClipNorm, 0);
  run.launch_it();
  const double first = run.wide;
  for (int again = 0; again < 3; ++again) {
    run.wide = -1;
    run.launch_it();
    CHECK(run.wide == first);
  }
}

TEST(more_tensors_than_a_launch_takes_as_arguments) {
  Gradients gradients;
  for (int i = 0; i < 3 * kClipInline; ++i)
    gradients.emplace_back(DType::kFloat32, numbers(i % 5), i % 4);
  const double want = norm_of(gradients, 2);
  Run run(gradients, 2, kBoth, want / 2, 20);
  CHECK(run.args.table != nullptr);
  simt::clear_log();
  run.launch_it();
  CHECK(simt::log().size() == 1);
  CHECK(near_to(run.wide, want, 1e-6));
  check_scaled(gradients, 0.5, "many");
}

TEST(squares_beyond_the_range) {
  struct Case {
    DType dtype;
    double size;
  };
  for (const Case c : {Case{DType::kFloat32, 3e38},
                       {DType::kFloat32, 1e25},
                       {DType::kBFloat16, 2e38},
                       {DType::kFloat64, 1e300},
                       {DType::kFloat64, 1.2e154}}) {
    Gradients gradients;
    gradients.emplace_back(DType::kFloat32, numbers(300));
    gradients.emplace_back(c.dtype, std::vector<double>(600, c.size));
    gradients.emplace_back(c.dtype, std::vector<double>(10, -c.size / 8));
    const double x = gradients[1].before()[0], y = gradients[2].before()[0];
    const double want = x * std::sqrt(600 + 10 * (y / x) * (y / x));
    Run run(gradients, 2, kBoth, want / 4);
    run.launch_it();
    CHECK_IN(near_to(run.wide, want, 1e-6), check::show(run.wide) + ", not " + check::show(want));
    check_scaled(gradients, 0.25, "large");
  }
}

TEST(powers_beyond_the_range) {
  for (const double size : {1e200, 1e-200}) {
    Gradients gradients;
    gradients.emplace_back(DType::kFloat64, std::vector<double>(400, size));
    Run run(gradients, 3, kClipNorm, 0);
    run.launch_it();
    const double want = size * std::cbrt(400.0);
    CHECK_IN(near_to(run.wide, want, 1e-12), check::show(run.wide) + ", not " + check::show(want));
  }
}

TEST(infinity_and_nan) {
  for (const double p : {2.0, 1.0, kInf, 3.0}) {
    for (const double bad : {kInf, -kInf, kNaN}) {
      for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16}) {
        Gradients gradients = mixed();
        std::vector<double> values = numbers(300);
        values[150] = bad;
        gradients.emplace_back(dtype, values);
        Run run(gradients, p, kBoth, 1);
        run.launch_it();
        CHECK(std::isnan(bad) ? std::isnan(run.wide) : run.wide == kInf);
        check_scaled(gradients, std::isnan(bad) ? kNaN : 0, "not finite");
      }
    }
  }
}

TEST(a_tensor_listed_twice_counts_twice_and_is_scaled_twice) {
  Gradients gradients = mixed();
  double want = norm_of(gradients, 2) * std::sqrt(2.0);
  std::vector<ClipTensor> tensors;
  Run run(gradients, 2, kBoth, want / 2);
  for (int twice = 0; twice < 2; ++twice) {
    for (Gradient& g : gradients) tensors.push_back(g.tensor());
  }
  run.table = make_clip_table(tensors, kChunk);
  CHECK(!run.table.overlapping);
  run.args.entries = static_cast<int>(run.table.entries.size());
  std::copy(run.table.entries.begin(), run.table.entries.end(), run.args.inlined);
  run.launch_it();
  CHECK(near_to(run.wide, want, 1e-6));
  check_scaled(gradients, 0.25, "twice");
}

TEST(tensors_that_share_a_part_are_told) {
  Gradient g(DType::kFloat32, numbers(100));
  const ClipTensor whole = g.tensor();
  const ClipTensor half = {static_cast<float*>(whole.data) + 50, 50, DType::kFloat32};
  CHECK(make_clip_table({whole, half}).overlapping);
  CHECK(!make_clip_table({{whole.data, 50, DType::kFloat32}, half}).overlapping);
}

TEST(scale_by_a_norm_that_is_given) {
  Gradients gradients = mixed();
  Run run(gradients, 2, kClipScale, 1);
  run.wide = 4;
  run.launch_it();
  check_scaled(gradients, 1 / (4 + 1e-6), "given");
}

TEST(clamp) {
  Gradients gradients;
  gradients.emplace_back(DType::kFloat32, std::vector<double>{3, -3, 0.25, kNaN, kInf, -kInf}, 1);
  gradients.emplace_back(DType::kBFloat16, std::vector<double>{3, -3, 0.25, kNaN, kInf, -kInf});
  Run run(gradients, 2, kClipClamp, 0.5);
  run.launch_it();
  const std::vector<double> want = {0.5, -0.5, 0.25, kNaN, 0.5, -0.5};
  for (const Gradient& g : gradients) {
    for (size_t i = 0; i < want.size(); ++i) CHECK(near_to(g.values()[i], want[i], 0));
  }
}

// --- bytes --------------------------------------------------------------------------------------

namespace {

int64_t bytes_read, bytes_written;

struct Counting : ClipEnv {
  template <class T>
  static T read(const T* p) {
    bytes_read += sizeof(T);
    return ClipEnv::read(p);
  }
  template <class T>
  static void write(T* p, const T& value) {
    bytes_written += sizeof(T);
    ClipEnv::write(p, value);
  }
};

}  // namespace

TEST(each_gradient_is_read_once_for_the_norm_and_read_and_written_once_for_the_scale) {
  Gradients gradients = mixed();
  int64_t bytes = 0;
  for (const Gradient& g : gradients) bytes += g.before().size() * bytes_of(g.dtype());
  const auto count = [&](int task, double limit) {
    bytes_read = bytes_written = 0;
    Run(gradients, 2, task, limit).with<Counting>();
  };
  count(kBoth, 1);
  CHECK(bytes_read == 2 * bytes && bytes_written == bytes);
  count(kClipNorm, 0);
  CHECK(bytes_read == bytes && bytes_written == 0);
  count(kBoth, 1e9);  // a factor of 1: nothing is touched a second time
  CHECK(bytes_read == bytes && bytes_written == 0);
}

// --- planted faults -----------------------------------------------------------------------------

namespace {

struct NobodyWaits : ClipEnv {
  static void meet(unsigned*) { sync_block(); }
};

struct OneIsNotWaitedFor : ClipEnv {
  static void meet(unsigned* counters) {
    sync_block();
    if (thread_index() == 0) {
      add_release<Scope::kDevice>(counters, 1u);
      while (load_acquire<Scope::kDevice>(counters) + 1 < static_cast<unsigned>(grid_x())) pause();
    }
    sync_block();
  }
};

struct OnlyTheFirstThreadWaits : ClipEnv {
  static void meet(unsigned* counters) {
    if (thread_index() == 0) {
      add_release<Scope::kDevice>(counters, 1u);
      while (load_acquire<Scope::kDevice>(counters) < static_cast<unsigned>(grid_x())) pause();
    }
  }
};

struct OneTooManyIsWaitedFor : ClipEnv {
  static void meet(unsigned* counters) {
    sync_block();
    if (thread_index() == 0) {
      add_release<Scope::kDevice>(counters, 1u);
      while (load_acquire<Scope::kDevice>(counters) <= static_cast<unsigned>(grid_x())) pause();
    }
    sync_block();
  }
};

struct CountersAreLeft : ClipEnv {
  static void meet(unsigned* counters) {
    sync_block();
    if (thread_index() == 0) {
      add_release<Scope::kDevice>(counters, 1u);
      while (load_acquire<Scope::kDevice>(counters) < static_cast<unsigned>(grid_x())) pause();
    }
    sync_block();
  }
};

// In how many of 50 schedules two launches in a row go wrong, or are caught.
template <class Env>
int wrong_runs() {
  return wrong_schedules([] {
    Gradients gradients;
    for (int i = 0; i < 4; ++i)
      gradients.emplace_back(DType::kFloat32, std::vector<double>(500, i + 1));
    const double want = norm_of(gradients, 2);
    Run run(gradients, 2, kClipNorm, 0, 8);
    bool right = true;
    const std::string failure = failure_of([&] {
      for (int launches = 0; launches < 2; ++launches) {
        run.sums.assign(run.grid, {kNaN, kNaN});
        run.args.sums = run.sums.data();
        run.wide = -1;
        run.with<Env>();
        right = right && near_to(run.wide, want, 1e-6);
      }
    });
    return right && failure.empty();
  });
}

}  // namespace

TEST(faults_in_the_meeting_of_blocks_are_caught) {
  CHECK(wrong_runs<ClipEnv>() == 0);
  CHECK(wrong_runs<NobodyWaits>() > 0);
  CHECK(wrong_runs<OneIsNotWaitedFor>() > 0);
  CHECK(wrong_runs<OnlyTheFirstThreadWaits>() > 0);
  CHECK(wrong_runs<CountersAreLeft>() > 0);
  CHECK(wrong_runs<OneTooManyIsWaitedFor>() == kSchedules);
}

TEST(more_blocks_than_fit_at_once_are_refused) {
  Gradients gradients = mixed();
  Run run(gradients, 2, kClipNorm, 0, 132 * 8 + 1);
  CHECK(contains(failure_of([&] { run.launch_it(); }), "launch of clip failed"));
  CHECK(clip_grid(1000000, 132, 8) == 132 * 8 && clip_grid(3, 132, 8) == 3);
  CHECK(clip_grid(0, 132, 8) == 1);
}
