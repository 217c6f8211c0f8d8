// The kernel of cuda.h. `Env` is what a test may replace: how gradients are read and written, and
// how blocks meet.
#pragma once

#include <cmath>

#include "clip/cuda.h"
#include "cuda/device/device.h"
#include "cuda/device/saved.h"

namespace rnnfast::cuda {

struct ClipEnv {
  template <class T>
  RNNFAST_DEVICE static T read(const T* p) {
    return load(p);
  }
  template <class T>
  RNNFAST_DEVICE static void write(T* p, const T& value) {
    store(p, value);
  }

  // All blocks of the grid; what each wrote before, everyone sees behind it.
  RNNFAST_DEVICE static void meet(unsigned* counters) {
    sync_block();
    if (thread_index() == 0) {
      const auto blocks = static_cast<unsigned>(grid_x());
      add_release<Scope::kDevice>(counters, 1u);
      wait_for("rnnfast: the meeting of clipping's blocks timed out",
               [&] { return load_acquire<Scope::kDevice>(counters) >= blocks; });
      // the last one to leave makes them ready for the next launch
      if (atomic_add<Scope::kDevice>(counters + 1, 1u) == blocks - 1) {
        store(counters, 0u);
        store(counters + 1, 0u);
      }
    }
    sync_block();
  }
};

namespace clip_detail {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;
inline constexpr int kWarps = kClipThreads / 32;

template <class W>
RNNFAST_DEVICE W size_of(W x) {
  return x < 0 ? -x : x;
}

RNNFAST_DEVICE bool is_finite(double x) { return x - x == 0; }

// The larger of two that are not negative, or NaN if one of them is.
RNNFAST_DEVICE double larger(double a, double b) {
  if (a != a) return a;
  return b <= a ? a : b;
}

// --- sums ---------------------------------------------------------------------------------------

RNNFAST_DEVICE ClipSum add(ClipSum a, ClipSum b, ClipKind kind, double p) {
  if (kind == ClipKind::kMax) return {larger(a.sum, b.sum), 0};
  if (a.sum == 0) return b;
  if (b.sum == 0) return a;
  if (a.exponent != b.exponent) {
    const double most = a.exponent < b.exponent ? b.exponent : a.exponent;
    a.sum *= std::exp2((a.exponent - most) * p);
    b.sum *= std::exp2((b.exponent - most) * p);
    a.exponent = most;
  }
  const double sum = a.sum + b.sum;
  if (is_finite(sum) || !is_finite(a.sum) || !is_finite(b.sum)) return {sum, a.exponent};
  return {a.sum * 0x1p-64 + b.sum * 0x1p-64, a.exponent + 64 / p};  // beyond fp64
}

// Of all threads of the block, in a fixed order; everyone has the result.
RNNFAST_DEVICE ClipSum add_block(ClipSum own, ClipKind kind, double p) {
  RNNFAST_SHARED_ARRAY(ClipSum, parts, kWarps);
  for (int bit = 16; bit > 0; bit /= 2) {
    const ClipSum other = {shuffle_xor(kAllLanes, own.sum, bit),
                           shuffle_xor(kAllLanes, own.exponent, bit)};
    own = lane() & bit ? add(other, own, kind, p) : add(own, other, kind, p);
  }
  sync_block();  // the array may still be read from the time before
  if (lane() == 0) parts[warp()] = own;
  sync_block();
  ClipSum all = parts[0];
  for (int w = 1; w < kWarps; ++w) all = add(all, parts[w], kind, p);
  return all;
}

RNNFAST_DEVICE double norm_of(ClipSum all, ClipKind kind, double p) {
  const double half = std::exp2(all.exponent / 2);  // the whole may be beyond fp64
  if (kind == ClipKind::kTwo) return half * std::sqrt(all.sum) * half;
  return half * (kind == ClipKind::kPower ? std::pow(all.sum, 1 / p) : all.sum) * half;
}

// --- chunks -------------------------------------------------------------------------------------

template <class T>
struct Piece {
  T* data;
  int64_t size;
};

RNNFAST_DEVICE int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// A chunk's part of a tensor.
struct RawPiece {
  void* data;
  int64_t size;
  DType dtype;
  int repeats;
};

// with(Piece<T>)
template <class With>
RNNFAST_DEVICE void with_type(RawPiece raw, const With& with) {
  switch (raw.dtype) {
    case DType::kFloat32:
      return with(Piece<float>{static_cast<float*>(raw.data), raw.size});
    case DType::kFloat64:
      return with(Piece<double>{static_cast<double*>(raw.data), raw.size});
    case DType::kBFloat16:
      return with(Piece<Bf16>{static_cast<Bf16*>(raw.data), raw.size});
    case DType::kFloat16:
      return with(Piece<F16>{static_cast<F16*>(raw.data), raw.size});
  }
}

template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / int(sizeof(T));
  T at[kSize];
};

// How a piece lies on 16-byte boundaries, and which of it this thread has: of the packs, and of the
// single elements before and behind them, those at multiples of kClipThreads from its own index.
struct Cut {
  int64_t head, packs, after, singles;

  RNNFAST_DEVICE Cut(const void* data, int64_t size, int64_t bytes) {
    const auto beyond = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % 16);
    head = beyond == 0 ? 0 : (16 - beyond) / bytes;
    if (head > size) head = size;
    packs = (size - head) / (16 / bytes);
    after = head + packs * (16 / bytes);
    singles = head + size - after;
  }
  RNNFAST_DEVICE int64_t single(int64_t i) const { return i < head ? i : after + i - head; }
  RNNFAST_DEVICE static int64_t own(int64_t count) {
    return count > thread_index() ? (count - thread_index() - 1) / kClipThreads + 1 : 0;
  }
};

// visit(pointer to Pack or to one element) for what this thread has of a piece.
template <class T, class Visit>
RNNFAST_DEVICE void each_own(Piece<T> piece, const Visit& visit) {
  const Cut cut(piece.data, piece.size, sizeof(T));
  auto* const aligned = reinterpret_cast<Pack<T>*>(piece.data + cut.head);
  for (int64_t i = thread_index(); i < cut.packs; i += kClipThreads) visit(aligned + i);
  for (int64_t i = thread_index(); i < cut.singles; i += kClipThreads) {
    visit(piece.data + cut.single(i));
  }
}

// body(x) for each element of this thread.
template <class Env, class T, class Body>
RNNFAST_DEVICE void each_value(Piece<T> piece, const Body& body) {
  struct Reader {
    const Body& body;
    RNNFAST_DEVICE void operator()(T* p) const { body(widen(Env::read(p))); }
    RNNFAST_DEVICE void operator()(Pack<T>* p) const {
      const Pack<T> pack = Env::read(p);
      RNNFAST_UNROLL
      for (int k = 0; k < Pack<T>::kSize; ++k) body(widen(pack.at[k]));
    }
  };
  each_own(piece, Reader{body});
}

// Replaces each element x of this thread by change(x).
template <class Env, class T, class Change>
RNNFAST_DEVICE void change_values(Piece<T> piece, const Change& change) {
  struct Writer {
    const Change& change;
    RNNFAST_DEVICE void operator()(T* p) const {
      Env::write(p, narrow<T>(change(widen(Env::read(p)))));
    }
    RNNFAST_DEVICE void operator()(Pack<T>* p) const {
      Pack<T> pack = Env::read(p);
      RNNFAST_UNROLL
      for (int k = 0; k < Pack<T>::kSize; ++k) pack.at[k] = narrow<T>(change(widen(pack.at[k])));
      Env::write(p, pack);
    }
  };
  each_own(piece, Writer{change});
}

template <class Env>
RNNFAST_DEVICE double read_any(RawPiece raw, int64_t i) {
  double value = 0;
  with_type(raw, [&](auto piece) { value = widen(Env::read(piece.data + i)); });
  return value;
}

// What this thread has of a piece, element by element in fp64: other powers, squares beyond the
// range of fp32, elements that are not finite. Slower, and small.
template <class Env>
RNNFAST_DEVICE ClipSum sum_carefully(RawPiece raw, ClipKind kind, double p) {
  const int64_t bytes = bytes_of(raw.dtype), size = 16 / bytes;
  const Cut cut(raw.data, raw.size, bytes);
  const int64_t in_packs = Cut::own(cut.packs) * size, count = in_packs + Cut::own(cut.singles);
  double exponent = 0;
  for (;;) {
    const double unit = std::exp2(-exponent);
    double total = 0, most = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t pack = thread_index() + k / size * kClipThreads;
      const int64_t single = thread_index() + (k - in_packs) * kClipThreads;
      const int64_t i = k < in_packs ? cut.head + pack * size + k % size : cut.single(single);
      const double x = size_of(read_any<Env>(raw, i)) * unit;
      most = larger(most, x);
      total += kind == ClipKind::kTwo ? x * x : kind == ClipKind::kOne ? x : std::pow(x, p);
    }
    const bool lost = total == 0 || !is_finite(total);
    if (!lost || most == 0 || !is_finite(most) || exponent != 0) return {total, exponent};
    int power = 0;
    std::frexp(most, &power);
    if (power == 0) return {total, exponent};
    exponent = power;  // once more, relative to the largest
  }
}

// What this thread has of a piece.
template <class Env>
RNNFAST_DEVICE ClipSum sum_piece(RawPiece raw, ClipKind kind, double p) {
  double total = 0;
  with_type(raw, [&](auto piece) {
    using W = decltype(widen(*piece.data));
    if (kind == ClipKind::kTwo) {
      W sum = 0;
      each_value<Env>(piece, [&](W x) { sum += x * x; });
      total = sum;
    } else if (kind == ClipKind::kOne) {
      W sum = 0;
      each_value<Env>(piece, [&](W x) { sum += size_of(x); });
      total = sum;
    } else if (kind == ClipKind::kMax) {
      each_value<Env>(piece, [&](W x) { total = larger(total, size_of(x)); });
    }
  });
  const bool done = kind == ClipKind::kMax || (kind != ClipKind::kPower && is_finite(total));
  return done ? ClipSum{total, 0} : sum_carefully<Env>(raw, kind, p);
}

template <class Env, class T>
RNNFAST_DEVICE void scale_piece(Piece<T> piece, double factor, int repeats) {
  const auto f = static_cast<Wide<T>>(factor);
  change_values<Env>(piece, [=](Wide<T> x) {
    for (int k = 1; k < repeats; ++k) x = widen(narrow<T>(x * f));
    return x * f;
  });
}

template <class Env, class T>
RNNFAST_DEVICE void clamp_piece(Piece<T> piece, double bound) {
  const Wide<T> high = widen(narrow<T>(Wide<T>(bound))), low = -high;
  change_values<Env>(piece, [=](Wide<T> x) {
    const Wide<T> raised = x < low ? low : x;
    return raised > high ? high : raised;
  });
}

// --- the table ----------------------------------------------------------------------------------

RNNFAST_DEVICE const ClipEntry* entry_of(const ClipArgs& args, int64_t chunk) {
  const ClipEntry* const entries = args.table ? args.table : args.inlined;
  int low = 0, high = args.entries;  // the entry is in low .. high - 1
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (load(&entries[middle].first_chunk) <= chunk ? low : high) = middle;
  }
  return entries + low;
}

RNNFAST_DEVICE RawPiece piece_of(const ClipArgs& args, int64_t chunk) {
  const ClipEntry* const entry = entry_of(args, chunk);
  const auto dtype = static_cast<DType>(load(&entry->dtype));
  const int64_t bytes = bytes_of(dtype);
  const int64_t index = chunk - int64_t(load(&entry->first_chunk));
  const int64_t each = args.chunk_bytes / bytes, left = load(&entry->size) - index * each;
  char* const data = static_cast<char*>(load(&entry->data));
  return {data + index * args.chunk_bytes, left < each ? left : each, dtype,
          int(load(&entry->repeats))};
}

RNNFAST_DEVICE void store_result(const ClipArgs& args, double norm) {
  if (args.wide) store(args.wide, norm);
  if (!args.result) return;
  switch (static_cast<DType>(args.result_dtype)) {
    case DType::kFloat32:
      return store(static_cast<float*>(args.result), float(norm));
    case DType::kFloat64:
      return store(static_cast<double*>(args.result), norm);
    case DType::kBFloat16:
      return store(static_cast<Bf16*>(args.result), from_float<Bf16>(float(norm)));
    case DType::kFloat16:
      return store(static_cast<F16*>(args.result), from_float<F16>(float(norm)));
  }
}

// The norm of everything; meets the other blocks.
template <class Env>
RNNFAST_DEVICE double norm_of_all(const ClipArgs& args) {
  const ClipKind kind = args.kind;
  ClipSum own = {0, 0};
  for (int64_t chunk = block_x(); chunk < args.chunks; chunk += grid_x()) {
    const RawPiece piece = piece_of(args, chunk);
    const ClipSum sum = sum_piece<Env>(piece, kind, args.p);
    for (int k = 0; k < piece.repeats; ++k) own = add(own, sum, kind, args.p);
  }
  const ClipSum of_block = add_block(own, kind, args.p);
  if (thread_index() == 0) store(args.sums + block_x(), of_block);
  Env::meet(args.meet);
  ClipSum some = {0, 0};
  for (int64_t b = thread_index(); b < grid_x(); b += kClipThreads) {
    some = add(some, load_coherent(args.sums + b), kind, args.p);
  }
  const ClipSum all = add_block(some, kind, args.p);
  return norm_of(all, kind, args.p);
}

}  // namespace clip_detail

template <class Env>
RNNFAST_KERNEL(kClipThreads)
clip(RNNFAST_ARGS ClipArgs args) {
  namespace detail = clip_detail;
  double norm = 0;
  if (args.task & kClipNorm) {
    norm = detail::norm_of_all<Env>(args);
    if (block_x() == 0 && thread_index() == 0) detail::store_result(args, norm);
  } else if (args.task & kClipScale) {
    norm = load(args.given);
  }
  const int64_t chunks = args.chunks, blocks = grid_x();
  if (args.task & kClipScale) {
    double factor = args.limit / (norm + 1e-6);
    if (factor > 1) factor = 1;
    if (factor == 1) return;  // nothing would change, a NaN is no 1
    const int64_t rounds = (chunks - block_x() + blocks - 1) / blocks;
    for (int64_t round = rounds - 1; round >= 0; --round) {
      const detail::RawPiece raw = detail::piece_of(args, block_x() + round * blocks);
      detail::with_type(raw,
                        [&](auto piece) { detail::scale_piece<Env>(piece, factor, raw.repeats); });
    }
  }
  if (args.task & kClipClamp) {
    for (int64_t chunk = block_x(); chunk < chunks; chunk += blocks) {
      detail::with_type(detail::piece_of(args, chunk),
                        [&](auto piece) { detail::clamp_piece<Env>(piece, args.limit); });
    }
  }
}

}  // namespace rnnfast::cuda
