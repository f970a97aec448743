// A bias-free perceptron as the mlp_* operators are given it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <optional>
#include <vector>

#include "cpu/sweep_plan.h"

namespace xattr {

// Layers first .. last; none where last is 0.
struct LayerRange {
  int64_t first = 1, last = 0;

  bool contains(int64_t l) const { return first <= l && l <= last; }
};

// y = W_L act(... act(W_1 x)), for weights [N_l, N_{l-1}] and one slope for each of the L - 1 activations. Layers count
// from 1, so that W_l stands between h_{l-1} and h_l, and 0 is the input.
struct Perceptron {
  std::vector<at::Tensor> weights;  // contiguous
  std::vector<double> slopes;

  int64_t layers() const { return static_cast<int64_t>(weights.size()); }
  int64_t width(int64_t l) const { return l == 0 ? weights[0].size(1) : weights[l - 1].size(0); }
  const at::Tensor& weight(int64_t l) const { return weights[l - 1]; }
  SweepPlan plan(int64_t rows) const;
};

// The arguments that all mlp_* operators share, checked; `like` fixes dtype and device.
Perceptron checked_perceptron(
    const char* op, const at::Tensor& like, at::TensorList weights, at::ArrayRef<double> slopes);

// `t` is [rows, columns], of the dtype and on the device of the weights.
void check_matrix(
    const char* op, const char* name, const at::Tensor& t, const Perceptron& net, int64_t rows, int64_t columns);

// One mask a hidden layer, of `rows` rows.
void check_masks(const char* op, at::TensorList bits, const Perceptron& net, int64_t rows);

// Ascending numbers of layers, first .. last.
void check_layers(const char* op, const char* name, at::IntArrayRef layers, int64_t first, int64_t last);

// The network of mlp_attribute and of mlp_attribute_backward, whose arguments are checked with it; of the latter's, the
// matrices of the chains are left to who reads them.
Perceptron checked_attribute(
    const char* op, const at::Tensor& x, at::TensorList weights, at::ArrayRef<double> slopes,
    const std::optional<at::Tensor>& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g);
Perceptron checked_backward(
    const char* op, const std::optional<at::Tensor>& x, const std::optional<at::Tensor>& a,
    const std::optional<at::Tensor>& s, const std::optional<at::Tensor>& delta, at::TensorList weights,
    at::ArrayRef<double> slopes, at::TensorList bits, at::IntArrayRef trained, bool output_tangent,
    bool input_cotangent);

// The mask of layer l from `row` on; null for the input and the output, which have none.
int32_t* mask_rows(at::TensorList bits, int64_t l, int64_t row);

}  // namespace xattr
