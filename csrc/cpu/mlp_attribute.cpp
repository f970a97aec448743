// xattr::mlp_attribute on the CPU: the forward and the attribution sweep of a perceptron.
#include <torch/library.h>

#include "checks.h"
#include "cpu/perceptron_sweeps.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor, Tensors, Tensors, Tensors> mlp_attribute(
    const at::Tensor& x, at::TensorList weights, at::ArrayRef<double> slopes, const at::Tensor& u,
    at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const char* op = "mlp_attribute";
  check_values(op, "x", x);
  const Perceptron net = checked_perceptron(op, x, weights, slopes);
  check_matrix(op, "x", x, net, x.size(0), net.width(0));
  check_matrix(op, "u", u, net, x.size(0), net.width(net.layers()));
  check_layers(op, "keep_h", keep_h, 1, net.layers() - 1);
  check_layers(op, "keep_g", keep_g, 0, net.layers() - 1);
  Attributed found = attribute_perceptron(net, x, u, keep_h, keep_g);
  return {
      std::move(found.y), std::move(found.attribution), std::move(found.bits), std::move(found.h), std::move(found.g)};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("mlp_attribute", mlp_attribute);
}

}  // namespace xattr
