// Where a loop's buffers have the rows of a sequence's step: by the rules of a scan.
#pragma once

#include "cpu/workspace.h"
#include "scan/steps.h"

namespace rnnfast::cpu::RNNFAST_ISA::steps {

using rnnfast::steps::Arguments;
using rnnfast::steps::Buffer;
using rnnfast::steps::Kind;

template <class S>
struct BufferRows {
  const Arguments& a;
  const Rules& rules;
  S* zeros;  // a row of any buffer

  // Of step t, which is the count-th of the loop, and of sequence b. Not of Kind::kMade.
  S* row(const Buffer& buffer, int64_t count, int64_t t, int64_t b) const {
    S* base = static_cast<S*>(buffer.base);
    const S* init = static_cast<const S*>(buffer.init);
    const int64_t w = buffer.width;
    switch (static_cast<Kind>(buffer.kind)) {
      case Kind::kStep:
      case Kind::kNew:
        return base ? base + (t * a.B + b) * w : nullptr;
      case Kind::kSequence:
        return base + b * w;
      case Kind::kOld:
        return const_cast<S*>(rules.previous(base, init, zeros, t, b, w));
      case Kind::kOldSlot:
        if (rules.reset(t, b)) return zeros;
        if (rules.first(t, b)) return const_cast<S*>(init) + b * w;
        return base + (((count + 1) & 1) * a.B + b) * w;
      case Kind::kIncoming:
        if (t == rules.last(b)) return const_cast<S*>(init) + b * w;
        return base + (((count + 1) & 1) * a.B + b) * w;
      case Kind::kNewSlot:
      case Kind::kOutgoing:
        return base + ((count & 1) * a.B + b) * w;
      case Kind::kMade:
        break;
    }
    return nullptr;
  }

  // Past a sequence's end.
  void clear(int buffers, int64_t t, int64_t b) const {
    for (int k = 0; k < buffers; ++k) {
      const Buffer& buffer = a.buffers[k];
      if (buffer.clear && buffer.base) {
        fill_zero(static_cast<S*>(buffer.base) + (t * a.B + b) * buffer.width, buffer.width);
      }
    }
  }

  // What the sequences end with.
  void keep_last(int buffers, Range mine, bool backward) const {
    for (int k = 0; k < buffers; ++k) {
      const Buffer& buffer = a.buffers[k];
      if (!buffer.last) continue;
      const int64_t w = buffer.width;
      for (int64_t b = mine.begin; b < mine.end; ++b) {
        const S* from = static_cast<const S*>(buffer.init) + b * w;
        if (rules.length(b) > 0) from = row(buffer, last_count(b, backward), rules.last(b), b);
        copy(static_cast<S*>(buffer.last) + b * w, from, w);
      }
    }
  }

 private:
  // The count at which sequence b took its last step.
  int64_t last_count(int64_t b, bool backward) const {
    const int64_t length = rules.length(b);
    if (backward) return rules.reverse ? length - 1 : a.T - 1;
    return rules.reverse ? a.T - 1 : length - 1;
  }
};

}  // namespace rnnfast::cpu::RNNFAST_ISA::steps
