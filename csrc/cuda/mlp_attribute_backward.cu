// xattr::mlp_attribute_backward on a GPU: sweeps and weight gradients in one launch, and the sums of its blocks.
#include "cuda/mlp_attribute_backward.cuh"

#include "cuda/perceptron.h"

namespace xattr {
namespace {

using Optional = std::optional<at::Tensor>;

// The arguments, checked, with unit stride between columns; undefined where they are None.
struct BackwardCall {
  const Perceptron& net;
  int64_t rows;
  at::IntArrayRef trained;
  bool output_tangent, input_cotangent;
  at::Tensor x, a, s, c, delta;
  Tensors bits, g, h;  // g and h by trained layer

  at::Tensor end(bool wanted, int64_t l) const {
    const auto options = net.weight(1).options();
    return wanted ? at::empty({rows, net.width(l)}, options) : at::empty({0}, options);
  }
};

at::Tensor checked(
    const char* op, const char* name, const Optional& t, const Perceptron& net, int64_t rows, int64_t columns) {
  if (!t) return {};
  check_matrix(op, name, *t, net, rows, columns);
  return row_major(*t);
}

Tensors checked_list(
    const char* op, const char* name, at::TensorList given, at::IntArrayRef trained, const Perceptron& net,
    int64_t rows, int64_t below) {
  TORCH_CHECK_VALUE(
      given.size() == trained.size(), "xattr::", op, ": `", name, "` has ", given.size(), " tensors; wanted ",
      trained.size(), ", one for each trained layer");
  Tensors found;
  for (size_t i = 0; i < trained.size(); ++i)
    found.push_back(checked(op, name, given[i], net, rows, net.width(trained[i] - below)));
  return found;
}

// The layers of a chain that something is wanted of.
template <typename T>
void limit_sweeps(const BackwardCall& call, cuda::BackwardArguments<T>& args) {
  const int last = args.net.layers;
  if (call.x.defined())
    args.up = call.output_tangent ? last : call.trained.empty() ? 0 : static_cast<int>(call.trained.back()) - 1;
  if (call.delta.defined())
    args.down = call.input_cotangent ? last : call.trained.empty() ? 0 : last - static_cast<int>(call.trained.front());
}

template <typename T>
void fill_arguments(const BackwardCall& call, cuda::BackwardArguments<T>& args) {
  args.x = kernel_matrix<T>(call.x);
  args.a = kernel_matrix<T>(call.a);
  args.s = kernel_matrix<T>(call.s);
  args.c = kernel_matrix<T>(call.c);
  args.delta = kernel_matrix<T>(call.delta);
  args.rows = call.rows;
  for (size_t i = 0; i < call.bits.size(); ++i)
    args.bits[i + 1] = static_cast<const uint32_t*>(call.bits[i].const_data_ptr());
  for (size_t i = 0; i < call.g.size(); ++i) args.g[call.trained[i]] = kernel_matrix<T>(call.g[i]);
  for (size_t i = 0; i < call.h.size(); ++i) args.h[call.trained[i]] = kernel_matrix<T>(call.h[i]);
  limit_sweeps(call, args);
}

// Where the gradients of the layers begin in a block's partial ones.
template <typename T>
void place_gradients(const BackwardCall& call, cuda::BackwardArguments<T>& args) {
  std::vector<bool> is_trained(args.net.layers + 1);
  for (const int64_t l : call.trained) is_trained[l] = true;
  args.places[0] = args.places[1] = 0;
  for (int l = 1; l <= args.net.layers; ++l)
    args.places[l + 1] = args.places[l] + (is_trained[l] ? int64_t{args.net.widths[l]} * args.net.widths[l - 1] : 0);
}

template <typename T>
void add_up(const BackwardCall& call, const cuda::BackwardArguments<T>& args, int blocks, const Tensors& gradients) {
  cuda::ReductionArguments<T> sums;
  sums.partials = args.partials;
  sums.blocks = blocks;
  sums.layers = args.net.layers;
  std::copy(std::begin(args.places), std::end(args.places), std::begin(sums.places));
  for (size_t i = 0; i < gradients.size(); ++i) sums.gradients[call.trained[i]] = kernel_values<T>(gradients[i]);
  cuda::add_partials(sums, c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// With the kernels, or false where they do not serve the network on this device.
template <class Math>
bool gradients_of(const BackwardCall& call, GradientsAndEnds& found) {
  using T = typename Math::Value;
  const auto options = call.net.weight(1).options();
  cuda::BackwardArguments<T> args;
  args.net = kernel_network<T>(call.net);
  const auto shape = cuda::backward_shape(kernel_device(options.device()), args.net, call.rows);
  if (shape.rows == 0) return false;
  auto& [gradients, v_end, delta_end] = found;
  v_end = call.end(call.output_tangent, call.net.layers());
  delta_end = call.end(call.input_cotangent, 0);
  for (const int64_t l : call.trained) gradients.push_back(at::empty(call.net.weight(l).sizes(), options));
  if (call.rows == 0) {
    for (at::Tensor& gradient : gradients) gradient.zero_();
    return true;
  }
  if (gradients.empty() && !call.output_tangent && !call.input_cotangent) return true;
  fill_arguments(call, args);
  args.v_end = call.output_tangent ? kernel_values<T>(v_end) : nullptr;
  args.delta_end = call.input_cotangent ? kernel_values<T>(delta_end) : nullptr;
  place_gradients(call, args);
  args.span_rows = shape.span_rows;
  cuda::place_scratch(args);
  const int64_t blocks = shape.blocks, weights = args.places[args.net.layers + 1];
  const at::Tensor scratch = at::empty({blocks, args.scratch_size}, options);
  const at::Tensor partials = at::empty({blocks, weights}, options.dtype(at::kFloat));
  args.scratch = kernel_values<T>(scratch);
  args.partials = kernel_values<float>(partials);
  cuda::mlp_attribute_backward<Math>(shape, args, c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (!gradients.empty()) add_up(call, args, shape.blocks, gradients);
  return true;
}

GradientsAndEnds mlp_attribute_backward(
    const Optional& x, const Optional& a, const Optional& s, const Optional& c, const Optional& delta,
    at::TensorList weights, at::ArrayRef<double> slopes, at::TensorList bits, at::TensorList g, at::TensorList h,
    at::IntArrayRef trained, bool output_tangent, bool input_cotangent) {
  const char* op = "mlp_attribute_backward";
  const Perceptron net =
      checked_backward(op, x, a, s, delta, weights, slopes, bits, trained, output_tangent, input_cotangent);
  const at::Tensor& like = x ? *x : *delta;
  const int64_t rows = like.size(0), last = net.layers();
  BackwardCall call{net, rows, trained, output_tangent, input_cotangent};
  for (const at::Tensor& mask : bits) call.bits.push_back(mask.contiguous());
  if (x) {
    call.x = checked(op, "x", x, net, rows, net.width(0));
    call.a = checked(op, "a", a, net, rows, net.width(0));
    call.s = checked(op, "s", s, net, rows, 1);
    call.c = checked(op, "c", c, net, rows, 1);
    call.g = checked_list(op, "g", g, trained, net, rows, 0);
  }
  if (delta) {
    call.delta = checked(op, "delta", delta, net, rows, net.width(last));
    call.h = checked_list(op, "h", h, trained, net, rows, 1);
  }
  GradientsAndEnds found;
  const Way way = way_of(net, like);
  if (way == Way::kKernels) {
    const c10::cuda::CUDAGuard guard(like.device());
    bool served = false;
    cuda::for_math(kernel_dtype(like.scalar_type()), rounds_to_tf32(), [&](auto math) {
      served = gradients_of<decltype(math)>(call, found);
    });
    if (served) return found;
  }
  if (way != Way::kBelow) {
    const LayerChains chains{call.x, call.a, call.s, call.c, call.delta, call.bits, call.g, call.h};
    return gradients_by_layers(net, chains, trained, output_tangent, input_cotangent);
  }
  static const auto below = layer_below<decltype(mlp_attribute_backward)>(op);
  return below.call(x, a, s, c, delta, weights, slopes, bits, g, h, trained, output_tangent, input_cotangent);
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("mlp_attribute_backward", mlp_attribute_backward);
}

}  // namespace xattr
