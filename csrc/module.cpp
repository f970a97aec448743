// The extension module: importing it registers the operators' kernels. What is not an operator is bound here.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <map>
#include <string>

#include "cpu/isa/kernels.h"
#include "cpu/sweep_plan.h"
#ifdef XATTR_CUDA
#include "cuda/serving.h"
#endif
#include "perceptron_node.h"

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
      {"cuda", xattr::cuda_build()},
#else
      {"cuda", "no"},
#endif
  };
  return info;
}

namespace py = pybind11;

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "Kernels of xattr_cuda. Importing this module registers them with PyTorch's dispatcher.";
  m.def("build_info", &build_info, "How the extension was built: a dict of str to str.");
  m.def("cpu_capability", &xattr::instruction_set, "The instruction set that the CPU kernels use on this processor.");
#ifdef XATTR_CUDA
  m.def(
      "set_cuda_kernels", &xattr::set_cuda_kernels,
      "Whether the CUDA kernels are used, or the layer below them is; and whether they are forced.");
  m.def(
      "has_cuda_code", [](int device) { return xattr::has_cuda_code(at::Device(at::kCUDA, device)); },
      "Whether the CUDA kernels were built for a device.");
  m.def(
      "serves_perceptron",
      [](const std::vector<at::Tensor>& weights) { return xattr::perceptron_kernels_serve(weights); },
      "Whether the CUDA kernels take a perceptron with these weights, which have two dimensions each.");
#endif

  py::class_<xattr::SweepPlan>(m, "SweepPlan", "How the CPU sweeps a perceptron of these widths, in fp32 or bf16.")
      .def(
          py::init([](const std::vector<int64_t>& widths, int64_t rows, bool bf16) {
            return xattr::SweepPlan(widths, rows, bf16 ? at::kBFloat16 : at::kFloat);
          }),
          py::arg("widths"), py::arg("rows"), py::arg("bf16") = false)
      .def_readonly("tiles", &xattr::SweepPlan::tiles)
      .def_readonly("threads", &xattr::SweepPlan::threads)
      .def_readonly("height", &xattr::SweepPlan::height)
      .def_readonly("sums_gradients", &xattr::SweepPlan::sums_gradients)
      .def_readonly("repeats_last", &xattr::SweepPlan::repeats_last);

  py::class_<xattr::PerceptronStep>(m, "PerceptronStep", "A step of a perceptron between its two native calls.")
      .def_readonly("y", &xattr::PerceptronStep::y)
      .def_readonly("unscaled", &xattr::PerceptronStep::unscaled);
  m.def(
      "sweep", &xattr::sweep_perceptron, py::call_guard<py::gil_scoped_release>(),
      "The forward and the attribution sweep: as in xattr_cuda/sweep/perceptron_function.py.");
  m.def(
      "plain", &xattr::plain_perceptron, py::call_guard<py::gil_scoped_release>(),
      "The output alone, differentiable: as there.");
  m.def("results", &xattr::perceptron_results, "(output, attribution, loss), differentiable: as there.");
}
