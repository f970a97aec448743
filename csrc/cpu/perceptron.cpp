#include "cpu/perceptron.h"

#include "checks.h"

namespace xattr {

Perceptron checked_perceptron(
    const char* op, const at::Tensor& like, at::TensorList weights, at::ArrayRef<double> slopes) {
  TORCH_CHECK_VALUE(!weights.empty(), "xattr::", op, ": `weights` is empty; wanted at least one layer");
  TORCH_CHECK_VALUE(
      slopes.size() + 1 == weights.size(), "xattr::", op, ": `slopes` has ", slopes.size(), " numbers for ",
      weights.size(), " weights; wanted one for each activation between them");
  Perceptron net;
  for (const at::Tensor& weight : weights) {
    check_values(op, "weights", weight);
    const bool fits = weight.dim() == 2 && (net.weights.empty() || weight.size(1) == net.weights.back().size(0));
    TORCH_CHECK_VALUE(
        fits && weight.scalar_type() == like.scalar_type() && weight.device() == like.device(), "xattr::", op,
        ": `weights[", net.weights.size(), "]` is ", weight.scalar_type(), " ", weight.sizes(), " on ", weight.device(),
        "; wanted ", like.scalar_type(), " [N, K] on ", like.device(), " with the K of the layer before's N");
    net.weights.push_back(weight.contiguous());
  }
  net.slopes.assign(slopes.begin(), slopes.end());
  return net;
}

void check_matrix(
    const char* op, const char* name, const at::Tensor& t, const Perceptron& net, int64_t rows, int64_t columns) {
  const at::Tensor& like = net.weights[0];
  TORCH_CHECK_VALUE(
      t.dim() == 2 && t.size(0) == rows && t.size(1) == columns && t.scalar_type() == like.scalar_type() &&
          t.device() == like.device(),
      "xattr::", op, ": `", name, "` is ", t.scalar_type(), " ", t.sizes(), " on ", t.device(), "; wanted ",
      like.scalar_type(), " [", rows, ", ", columns, "] on ", like.device());
}

void check_masks(const char* op, at::TensorList bits, const Perceptron& net, int64_t rows) {
  TORCH_CHECK_VALUE(
      static_cast<int64_t>(bits.size()) == net.layers() - 1, "xattr::", op, ": `bits` has ", bits.size(),
      " masks; wanted one for each of ", net.layers() - 1, " activations");
  for (int64_t l = 1; l < net.layers(); ++l) check_bits(op, bits[l - 1], {rows, net.width(l)}, net.weights[0]);
}

void check_layers(const char* op, const char* name, at::IntArrayRef layers, int64_t first, int64_t last) {
  int64_t least = first;
  bool fits = true;
  for (const int64_t l : layers) {
    fits = fits && l >= least && l <= last;
    least = l + 1;
  }
  TORCH_CHECK_VALUE(
      fits, "xattr::", op, ": `", name, "` is ", layers, "; wanted ascending layers from ", first, " to ", last);
}

Perceptron checked_attribute(
    const char* op, const at::Tensor& x, at::TensorList weights, at::ArrayRef<double> slopes,
    const std::optional<at::Tensor>& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  check_values(op, "x", x);
  Perceptron net = checked_perceptron(op, x, weights, slopes);
  check_matrix(op, "x", x, net, x.size(0), net.width(0));
  if (u) check_matrix(op, "u", *u, net, x.size(0), net.width(net.layers()));
  check_layers(op, "keep_h", keep_h, 1, net.layers() - 1);
  check_layers(op, "keep_g", keep_g, 0, net.layers() - 1);
  TORCH_CHECK_VALUE(
      u || keep_g.empty(), "xattr::", op, ": `keep_g` is ", keep_g,
      "; wanted none, since `u` is None and no g is swept");
  return net;
}

Perceptron checked_backward(
    const char* op, const std::optional<at::Tensor>& x, const std::optional<at::Tensor>& a,
    const std::optional<at::Tensor>& s, const std::optional<at::Tensor>& delta, at::TensorList weights,
    at::ArrayRef<double> slopes, at::TensorList bits, at::IntArrayRef trained, bool output_tangent,
    bool input_cotangent) {
  TORCH_CHECK_VALUE(x || delta, "xattr::", op, ": `x` and `delta` are both None; wanted one chain at least");
  TORCH_CHECK_VALUE(
      !x || a || s, "xattr::", op, ": `a` and `s` are both None; wanted one of them at least to start from `x`");
  const at::Tensor& like = x ? *x : *delta;
  check_values(op, x ? "x" : "delta", like);
  Perceptron net = checked_perceptron(op, like, weights, slopes);
  check_masks(op, bits, net, like.size(0));
  check_layers(op, "trained", trained, 1, net.layers());
  TORCH_CHECK_VALUE(
      (x || !output_tangent) && (delta || !input_cotangent), "xattr::", op,
      ": the end of a chain was asked for that was not given");
  return net;
}

int32_t* mask_rows(at::TensorList bits, int64_t l, int64_t row) {
  if (l == 0 || l > static_cast<int64_t>(bits.size())) return nullptr;
  const at::Tensor& mask = bits[l - 1];
  return static_cast<int32_t*>(mask.data_ptr()) + row * mask.size(1);
}

}  // namespace xattr
