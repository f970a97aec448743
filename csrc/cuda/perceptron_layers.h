// Perceptrons layer by layer from C++: products by PyTorch's library, masks by the operators of one layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "cpu/perceptron.h"

namespace xattr {

using Tensors = std::vector<at::Tensor>;
using Attributed = std::tuple<at::Tensor, at::Tensor, Tensors, Tensors, Tensors>;
using GradientsAndEnds = std::tuple<Tensors, at::Tensor, at::Tensor>;

// Both chains of a backward pass, undefined where they are None; g and h by trained layer.
struct LayerChains {
  at::Tensor x, a, s, c, delta;
  Tensors bits, g, h;
};

// mlp_attribute and mlp_attribute_backward, as kernels/triton/layers.py has them.
Attributed attribute_by_layers(
    const Perceptron& net, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g);
GradientsAndEnds gradients_by_layers(
    const Perceptron& net, const LayerChains& chains, at::IntArrayRef trained, bool output_tangent,
    bool input_cotangent);

}  // namespace xattr
