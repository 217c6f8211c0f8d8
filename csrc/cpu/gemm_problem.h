// A product of two matrices, as the kernels of every instruction set are given it.
#pragma once

#include <cstdint>

#include "cpu/storage.h"

namespace rnnfast::cpu {

// C [M, N] = A [M, K] · B [K, N]; strides in elements. A and B are both float, both double, or
// stored in 16 bits: B alone or both, and then A's rows are contiguous. C is float or double.
template <class A, class B = A>
struct Gemm {
  int64_t M = 0, N = 0, K = 0;
  int64_t all_rows = 0;  // of a product of which these M are made here; 0: these are all
  const A* a = nullptr;
  int64_t a_row = 0, a_column = 0;
  const B* b = nullptr;
  int64_t b_row = 0, b_column = 0;
  Wide<A>* c = nullptr;  // rows contiguous
  int64_t c_row = 0;
  bool add = false;        // to what is in C
  const B* row = nullptr;  // [N] or null: added to each row
  struct {
    int rows = 1, columns = 1;
  } split;                    // of C, among threads
  void* workspace = nullptr;  // Kernels::gemm_room() bytes for each thread
};

// What parts of C are multiples of.
struct GemmGrain {
  int64_t rows, columns;
};

}  // namespace rnnfast::cpu
