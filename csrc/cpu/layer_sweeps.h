// The maps of a perceptron's layers on whole batches, by the operators of one layer.
#pragma once

#include "cpu/gemm.h"
#include "cpu/perceptron.h"

namespace xattr {

// The slope after layer l as the operators take it: none for zero.
inline std::optional<at::Tensor> slope_of(const Perceptron& net, int64_t l) {
  if (net.slopes[l - 1] == 0) return std::nullopt;
  return at::empty({1}, net.weights[0].options()).fill_(net.slopes[l - 1]);
}

// g_{l-1} = m_{l-1} * (W_l^T g_l); bits: one mask a hidden layer.
inline at::Tensor cotangent_of(const Perceptron& net, int64_t l, const at::Tensor& g, at::TensorList bits) {
  if (l == 1) return matmul_mask(g, net.weight(l), std::nullopt, std::nullopt);
  return matmul_mask(g, net.weight(l), bits[l - 2], slope_of(net, l - 1));
}

// v_l = m_l * (W_l v_{l-1}).
inline at::Tensor tangent_of(const Perceptron& net, int64_t l, const at::Tensor& v, at::TensorList bits) {
  if (l == net.layers()) return matmul_mask(v, net.weight(l).t(), std::nullopt, std::nullopt);
  return matmul_mask(v, net.weight(l).t(), bits[l - 1], slope_of(net, l));
}

}  // namespace xattr
