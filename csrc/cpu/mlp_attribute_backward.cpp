// xattr::mlp_attribute_backward on the CPU: the weight gradients of a perceptron, from one chain or two.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/perceptron_sweeps.h"

namespace xattr {

namespace {

using Optional = std::optional<at::Tensor>;

// A list by layer from one by trained layer.
void place_by_layer(
    const char* op, const char* name, at::TensorList given, at::IntArrayRef trained, const Perceptron& net,
    int64_t rows, int64_t below, Tensors& found) {
  TORCH_CHECK_VALUE(
      given.size() == trained.size(), "xattr::", op, ": `", name, "` has ", given.size(), " tensors; wanted ",
      trained.size(), ", one for each trained layer");
  for (size_t i = 0; i < trained.size(); ++i) {
    check_matrix(op, name, given[i], net, rows, net.width(trained[i] - below));
    found[trained[i]] = given[i];
  }
}

// An argument of the own chain's start, checked; undefined if it is None.
at::Tensor checked_start(
    const char* op, const char* name, const Optional& t, const Perceptron& net, int64_t rows, int64_t columns) {
  if (!t) return {};
  check_matrix(op, name, *t, net, rows, columns);
  return *t;
}

}  // namespace

std::tuple<Tensors, at::Tensor, at::Tensor> mlp_attribute_backward(
    const Optional& x, const Optional& a, const Optional& s, const Optional& c, const Optional& delta,
    at::TensorList weights, at::ArrayRef<double> slopes, at::TensorList bits, at::TensorList g, at::TensorList h,
    at::IntArrayRef trained, bool output_tangent, bool input_cotangent) {
  const char* op = "mlp_attribute_backward";
  const Perceptron net =
      checked_backward(op, x, a, s, delta, weights, slopes, bits, trained, output_tangent, input_cotangent);
  const at::Tensor& like = x ? *x : *delta;
  const int64_t rows = like.size(0), last = net.layers();
  Chains chains(net, output_tangent, input_cotangent, trained);
  for (const at::Tensor& mask : bits) chains.bits.push_back(mask.contiguous());
  if (x) {
    chains.x = checked_start(op, "x", x, net, rows, net.width(0));
    chains.a = checked_start(op, "a", a, net, rows, net.width(0));
    chains.s = checked_start(op, "s", s, net, rows, 1);
    chains.c = checked_start(op, "c", c, net, rows, 1);
    place_by_layer(op, "g", g, trained, net, rows, 0, chains.g);
  }
  if (delta) {
    chains.delta = checked_start(op, "delta", delta, net, rows, net.width(last));
    place_by_layer(op, "h", h, trained, net, rows, 1, chains.h);
  }
  Gradients found = perceptron_gradients(net, std::move(chains));
  Tensors gradients;
  for (const int64_t l : trained) gradients.push_back(std::move(found.weights[l]));
  const auto given_or_none = [&](at::Tensor& end) {
    return end.defined() ? std::move(end) : at::empty({0}, like.options());
  };
  return {std::move(gradients), given_or_none(found.v), given_or_none(found.delta)};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("mlp_attribute_backward", mlp_attribute_backward);
}

}  // namespace xattr
