// What the loops of a cell generated from a step are given, by Python (rnnfast/steps/loops.py has the
// same structures). Pointers are to the memory of the device that the loop runs on, but for those
// to these tables.
#pragma once

#include <cstdint>

namespace rnnfast::steps {

// How a row of a buffer is found for sequence b at step t. `width` is in elements.
enum class Kind : int64_t {
  kStep,      // base [T, B, width]
  kSequence,  // base [B, width]
  kOld,       // the state before the step: of base [T, B, width], init [B, width], or 0
  kOldSlot,   // the same where only two steps' are kept: base [2, B, width]
  kNewSlot,   // the state after the step, there
  kNew,       // the state after the step: base [T, B, width]
  kIncoming,  // backward: the gradient of the state after the step: base [2, B, width] or init
  kOutgoing,  // backward: that of the state before the step, there
  kMade,      // row b of what Input::before returned
};

struct Buffer {
  void* base;
  const void* init;  // the state (or gradient) that a sequence begins with
  void* last;        // kNew, kNewSlot, kOutgoing: [B, width], what it ends with
  int64_t width;
  int64_t kind;
  int64_t clear;  // whether steps past a sequence's end get zeros
};

// A strided view of a weight: of output row r and column k, at offset + r·row + k·column, and of
// block b of a block-diagonal one b·block further on.
struct View {
  int64_t weight, offset, row, column, block;
};

// What makes the input's part of the gates for a loop on the host, or backward the gradient of the
// input, a few steps at a time (csrc/cpu/loop_input.h). Pointers, since its products are compiled
// with the host's kernels.
struct Input {
  const void* of;
  // Thread `id` of n's share of what has to be done before the first step.
  void (*begin)(const void* of, int id, int n);
  // Before step `step`, of the sequences [first, last), which are those of row part `row`: where row
  // b of the step's gates is, at b · their width from what is returned.
  void* (*before)(const void* of, int64_t step, int row, int64_t first, int64_t last);
  // Backward, after that step of those sequences.
  void (*after)(const void* of, int64_t step, int64_t first, int64_t last);
};

// Runs body(context, id, n) for each id of n threads, or of fewer if no more are to be had.
using Team = void (*)(int n, void (*body)(void* context, int id, int n), void* context);

struct Arguments {
  int64_t T, B, H;
  int64_t reverse, training;
  int64_t rows, units;  // the host's threads: parts of the batch, and of the hidden units
  const int64_t* lengths;
  const bool* resets;
  const Buffer* buffers;
  const void* const* weights;
  const View* views;
  const double* constants;
  double grad_clip_time;
  void* workspace;
  Team team;       // the host's
  int64_t packed;  // the host's: whether the workspace has the packed weights of a call before
  // The host's: one step of few sequences, weights are read where they lie. rows is 1 then.
  int64_t in_place;
  // The host's: what makes the gates of kMade, or backward the gradient of the input, or null.
  const Input* input;
};

// A pass on the host. Returns whether threads had to leave, since they waited for most of the time.
using HostPass = bool (*)(const Arguments*);

}  // namespace rnnfast::steps
