// Which of the streams' kernels run here.
#include <string>

#include "cpu/kernels.h"
#include "cpu/stream/kernels.h"

namespace rnnfast::cpu::stream {

const Kernels& kernels() {
#if defined(__x86_64__)
  static const std::string isa = cpu::kernels().isa;
  static const Kernels& chosen = isa == "avx512" ? kernels_avx512
                                 : isa == "avx2" ? kernels_avx2
                                                 : kernels_baseline;
  return chosen;
#else
  return kernels_baseline;
#endif
}

}  // namespace rnnfast::cpu::stream
