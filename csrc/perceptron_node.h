// A step of a perceptron as one node of autograd: the twin of xattr_cuda/sweep/perceptron_function.py, without Python
// between a step's sweeps and the engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace xattr {

// A step between its two native calls. Layers count from 1.
struct PerceptronStep {
  std::vector<at::Tensor> weights;
  std::vector<double> slopes;
  std::vector<int64_t> trained;  // layers whose weights are
  bool one_output;
  at::Tensor y;         // [B, N_L]
  at::Tensor unscaled;  // x * g_0, [B, N_0]
  at::Tensor u;         // where the own chain starts, [B, N_L]
  std::vector<at::Tensor> bits;
  std::vector<at::Tensor> h;  // with two chains: inputs of the trained layers but the first
  std::vector<int64_t> kept;  // the layers of g
  std::vector<at::Tensor> g;  // own cotangents at the outputs of these layers; 0 is the input
};

// The forward and the attribution sweep. u: none stands for ones. needs_grad: a backward pass may follow; needs_g0: it
// will need g_0.
PerceptronStep sweep_perceptron(
    const at::Tensor& x, std::vector<at::Tensor> weights, std::vector<double> slopes,
    const std::optional<at::Tensor>& u, bool needs_grad, bool needs_g0);

// (output, attribution, loss), differentiable. cotangent, loss: as in PerceptronFunction.
std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>> perceptron_results(
    PerceptronStep& step, const at::Tensor& x, const std::optional<at::Tensor>& cotangent,
    const std::optional<at::Tensor>& loss);

// The output alone, differentiable if needs_grad: a step without an attribution.
at::Tensor plain_perceptron(
    const at::Tensor& x, std::vector<at::Tensor> weights, std::vector<double> slopes, bool needs_grad);

}  // namespace xattr
