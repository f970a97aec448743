// xattr::mlp_attribute_backward on a GPU: the sweeps and the weight gradients of all layers in one launch.
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
void fill_arguments(const BackwardCall& call, const GradientsAndEnds& found, cuda::BackwardArguments<T>& args) {
  args.x = kernel_matrix<T>(call.x);
  args.a = kernel_matrix<T>(call.a);
  args.s = kernel_matrix<T>(call.s);
  args.c = kernel_matrix<T>(call.c);
  args.delta = kernel_matrix<T>(call.delta);
  args.v_end = call.output_tangent ? kernel_values<T>(std::get<1>(found)) : nullptr;
  args.delta_end = call.input_cotangent ? kernel_values<T>(std::get<2>(found)) : nullptr;
  args.rows = call.rows;
  for (size_t i = 0; i < call.bits.size(); ++i)
    args.bits[i + 1] = static_cast<const uint32_t*>(call.bits[i].const_data_ptr());
  limit_sweeps(call, args);
}

// The pairs of the trained layers, and where their gradients go. What the sweeps are to keep is in `kept`, tensors that
// live until the launch is made.
template <typename T>
void fill_pairs(const BackwardCall& call, const Tensors& gradients, cuda::BackwardArguments<T>& args, Tensors& kept) {
  cuda::PairArguments<T>& pairs = args.pairs;
  const int last = args.net.layers;
  pairs.layers = last;
  pairs.rows = call.rows;
  std::copy(std::begin(args.net.widths), std::end(args.net.widths), std::begin(pairs.widths));
  const auto keep = [&](T*& values, int l) -> cuda::Matrix<const T> {
    const int pitch = cuda::saved_pitch(args.net.widths[l]);
    kept.push_back(at::empty({call.rows, pitch}, call.net.weight(1).options()));
    values = kernel_values<T>(kept.back());
    return {values, pitch};
  };
  size_t i = 0;
  for (int l = 1; l <= last; ++l) {
    const int N = args.net.widths[l], K = args.net.widths[l - 1];
    pairs.tiles[l + 1] = pairs.tiles[l];
    pairs.places[l + 1] = pairs.places[l];
    if (i == call.trained.size() || call.trained[i] != l) continue;
    pairs.tiles[l + 1] += cuda::tiles_of(N, K);
    pairs.places[l + 1] += int64_t{N} * K;
    pairs.gradients[l] = kernel_values<T>(gradients[i]);
    if (call.x.defined()) pairs.own[l] = {kernel_matrix<T>(call.g[i]), keep(args.v[l - 1], l - 1)};
    if (call.delta.defined())
      pairs.task[l] = {l == last ? args.delta : keep(args.deltas[l], l), kernel_matrix<T>(call.h[i])};
    ++i;
  }
}

// How the batch is cut into parts, and memory for their sums.
template <typename T>
void fill_parts(const cuda::Device& device, cuda::PairArguments<T>& pairs, at::TensorOptions options, Tensors& kept) {
  const int tiles = pairs.tiles[pairs.layers + 1];
  if (tiles == 0) return;
  const cuda::Parts parts = cuda::parts_of(device, tiles, pairs.rows);
  pairs.parts = parts.count;
  pairs.part_rows = parts.rows;
  if (parts.count == 1) return;
  kept.push_back(at::empty({parts.count, pairs.places[pairs.layers + 1]}, options.dtype(at::kFloat)));
  pairs.partials = kernel_values<float>(kept.back());
}

// The counters by which blocks wait for one another.
template <typename T>
void fill_counters(cuda::BackwardArguments<T>& args, at::TensorOptions options, cudaStream_t stream, Tensors& kept) {
  const int64_t count = cuda::counters_of(args.pairs);
  kept.push_back(at::empty({count}, options.dtype(at::kInt)));
  args.tickets = kernel_values<unsigned>(kept.back());
  args.pairs.done = args.tickets + 1 + args.pairs.parts;
  C10_CUDA_CHECK(cudaMemsetAsync(args.tickets, 0, count * sizeof(unsigned), stream));
}

// With the kernel, or false where it does not serve the network on this device.
template <class Math>
bool gradients_of(const BackwardCall& call, GradientsAndEnds& found) {
  using T = typename Math::Value;
  const auto options = call.net.weight(1).options();
  const cuda::Device device = kernel_device(options.device());
  cuda::BackwardArguments<T> args;
  args.net = kernel_network<T>(call.net);
  const int block_rows = cuda::choose_backward_rows(device, args.net, call.rows);
  if (block_rows == 0) return false;
  auto& [gradients, v_end, delta_end] = found;
  v_end = call.end(call.output_tangent, call.net.layers());
  delta_end = call.end(call.input_cotangent, 0);
  for (const int64_t l : call.trained) gradients.push_back(at::empty(call.net.weight(l).sizes(), options));
  if (call.rows == 0) {
    for (at::Tensor& gradient : gradients) gradient.zero_();
    return true;
  }
  if (gradients.empty() && !call.output_tangent && !call.input_cotangent) return true;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  Tensors kept;
  fill_arguments(call, found, args);
  fill_pairs(call, gradients, args, kept);
  fill_parts(device, args.pairs, options, kept);
  fill_counters(args, options, stream, kept);
  cuda::mlp_attribute_backward<Math>(block_rows, args, stream);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
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
      served = serves_within_memory([&] { return gradients_of<decltype(math)>(call, found); });
    });
    if (served) return found;
    found = {};
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
