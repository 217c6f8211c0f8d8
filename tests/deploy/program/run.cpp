// run MODEL.pt2 INPUTS.pt OUTPUTS.pt: runs a package of AOTInductor, once for each tuple of inputs
// in a list that torch.save wrote, and writes a list of the outputs.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

namespace {

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<at::Tensor> tensors_of(const c10::IValue& tuple) {
  std::vector<at::Tensor> found;
  for (const c10::IValue& value : tuple.toTupleRef().elements()) found.push_back(value.toTensor());
  return found;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("run MODEL.pt2 INPUTS.pt OUTPUTS.pt");
  const c10::InferenceMode no_gradients;
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  std::vector<std::vector<at::Tensor>> outputs;
  const c10::IValue inputs = torch::jit::pickle_load(read(argv[2]));
  for (const c10::IValue& tuple : inputs.toListRef())
    outputs.push_back(model.run(tensors_of(tuple)));
  const std::vector<char> bytes = torch::jit::pickle_save(outputs);
  std::ofstream(argv[3], std::ios::binary).write(bytes.data(), std::streamsize(bytes.size()));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
