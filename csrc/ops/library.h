// Defining ops on torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>

#include <vector>

namespace rnnfast::ops {

// Defines ops in a namespace for as long as the process lives. False where that was done before, by
// Python's rnnfast or another copy of the library: then they stay what they are, and torch logs it.
inline bool define(const char* name, const std::vector<const char*>& schemas) {
  TorchLibraryHandle library = nullptr;
  if (aoti_torch_library_init_fragment(name, __FILE__, __LINE__, &library) != TORCH_SUCCESS)
    return false;
  for (const char* schema : schemas) {
    if (aoti_torch_library_def(library, schema) == TORCH_SUCCESS) continue;
    aoti_torch_delete_library_object(library);
    return false;
  }
  return true;
}

}  // namespace rnnfast::ops
