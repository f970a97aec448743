// The extension module: importing it registers the operators' kernels. What is not an operator is bound here.
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <map>
#include <string>

#include "cpu/isa/kernels.h"
#include "cpu/perceptron.h"

namespace {

std::map<std::string, std::string> build_info() {
  std::map<std::string, std::string> info = {
      {"torch", TORCH_VERSION},
      {"compiler", __VERSION__},
      {"c++", std::to_string(__cplusplus)},
      {"instruction sets",
       "DEFAULT"
#ifdef XATTR_AVX2
       ", AVX2"
#endif
#ifdef XATTR_AVX512
       ", AVX512"
#endif
      },
#ifdef XATTR_CUDA
      {"cuda", "yes"},
#else
      {"cuda", "no"},
#endif
  };
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Kernels of xattr_cuda. Importing this module registers them with PyTorch's dispatcher.";
  m.def("build_info", &build_info, "How the extension was built: a dict of str to str.");
  m.attr("LARGEST_NETWORK") = xattr::kLargestNetwork;
  m.def("cpu_capability", &xattr::instruction_set, "The instruction set that the CPU kernels use on this processor.");
}
