// xattr::mlp_attribute on the CPU: the forward and the attribution sweep of a perceptron.
#include <torch/library.h>

#include "checks.h"
#include "cpu/perceptron_sweeps.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor, Tensors, Tensors, Tensors> mlp_attribute(
    const at::Tensor& x, at::TensorList weights, at::ArrayRef<double> slopes, const std::optional<at::Tensor>& u,
    at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const char* op = "mlp_attribute";
  const Perceptron net = checked_attribute(op, x, weights, slopes, u, keep_h, keep_g);
  Attributed found = attribute_perceptron(net, x, u.value_or(at::Tensor()), keep_h, keep_g);
  return {
      std::move(found.y), std::move(found.attribution), std::move(found.bits), std::move(found.h), std::move(found.g)};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("mlp_attribute", mlp_attribute);
}

}  // namespace xattr
