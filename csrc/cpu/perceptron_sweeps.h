// The sweeps of a whole perceptron, in the form that its plan chooses.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/perceptron.h"

namespace xattr {

using Tensors = std::vector<at::Tensor>;

// What the forward and the attribution sweep find.
struct Attributed {
  at::Tensor y, attribution;
  Tensors bits, h, g;  // the masks of the hidden layers; what was to be kept
};

// u: undefined for the forward sweep alone, whose attribution is empty.
Attributed attribute_perceptron(
    const Perceptron& net, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g);

// What the backward pass sweeps. Lists by layer have an entry for 0 .. L, undefined where nothing is needed. The sweeps
// take their Chains over and release each tensor when they have used it.
struct Chains {
  // The own chain's tangents start at (c a + s) x. x: undefined if the chain is absent. a: [B, N_0]; s, c: [B, 1]; each
  // may be undefined, though not both a and s.
  at::Tensor x, a, s, c;
  at::Tensor delta;           // where the task's cotangents start; undefined if that chain is absent
  Tensors bits;               // one mask a hidden layer
  Tensors g;                  // by layer, of the trained ones: the own cotangent at the output; that at L is u.
                              // At L - 1 it may be missing, and is then swept again from u
  Tensors h;                  // by layer, of the trained ones: the input
  std::vector<bool> trained;  // by layer
  int64_t up = 0, down = 0;   // the tangents reach the output of layer `up`, the cotangents the input of `down`
  bool output_tangent = false, input_cotangent = false;  // which ends are wanted

  // The layers whose weights the tangent and the cotangent sweep apply.
  LayerRange ups() const { return {1, x.defined() ? up : 0}; }
  LayerRange downs() const { return {down, delta.defined() ? static_cast<int64_t>(trained.size()) - 1 : 0}; }

  Chains(const Perceptron& net, bool output_tangent, bool input_cotangent, at::IntArrayRef trained);
};

// What they find: the gradients of the trained layers, and the ends that were asked for.
struct Gradients {
  Tensors weights;  // by layer
  at::Tensor v, delta;
};

Gradients perceptron_gradients(const Perceptron& net, Chains&& chains);

}  // namespace xattr
