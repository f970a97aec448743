// xattr::mlp_attribute on a GPU: the forward and the attribution sweep of a perceptron in one launch.
#include "cuda/mlp_attribute.cuh"

#include "cuda/perceptron.h"

namespace xattr {
namespace {

struct AttributeCall {
  const Perceptron& net;
  at::Tensor x, u;
  at::IntArrayRef keep_h, keep_g;

  at::Tensor empty(int64_t l) const { return at::empty({x.size(0), net.width(l)}, x.options()); }

  Tensors empty(at::IntArrayRef layers) const {
    Tensors found;
    for (const int64_t l : layers) found.push_back(empty(l));
    return found;
  }
};

// With the kernels, or false where they do not serve the network on this device.
template <class Math>
bool attribute(const AttributeCall& call, Attributed& found) {
  using T = typename Math::Value;
  const int64_t rows = call.x.size(0), last = call.net.layers();
  cuda::AttributeArguments<T> args;
  args.net = kernel_network<T>(call.net);
  const int block_rows = cuda::choose_rows(kernel_device(call.x.device()), args.net, rows);
  if (block_rows == 0) return false;
  auto& [y, a, bits, h, g] = found;
  y = call.empty(last);
  a = call.empty(0);
  h = call.empty(call.keep_h);
  g = call.empty(call.keep_g);
  for (int64_t l = 1; l < last; ++l)
    bits.push_back(at::empty({rows, cuda::words_of(args.net.widths[l])}, call.x.options().dtype(at::kInt)));
  if (rows == 0) return true;
  args.x = kernel_matrix<T>(call.x);
  args.u = kernel_matrix<T>(call.u);
  args.y = kernel_values<T>(y);
  args.a = kernel_values<T>(a);
  args.rows = rows;
  for (int64_t l = 1; l < last; ++l) args.bits[l] = kernel_values<uint32_t>(bits[l - 1]);
  for (size_t i = 0; i < h.size(); ++i) args.h[call.keep_h[i]] = kernel_values<T>(h[i]);
  for (size_t i = 0; i < g.size(); ++i) args.g[call.keep_g[i]] = kernel_values<T>(g[i]);
  cuda::mlp_attribute<Math>(block_rows, args, c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return true;
}

Attributed mlp_attribute(
    const at::Tensor& x, at::TensorList weights, at::ArrayRef<double> slopes, const std::optional<at::Tensor>& u,
    at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const char* op = "mlp_attribute";
  const Perceptron net = checked_attribute(op, x, weights, slopes, u, keep_h, keep_g);
  Attributed found;
  const Way way = u ? way_of(net, x) : Way::kBelow;  // a forward sweep alone is left to the layers
  if (way == Way::kKernels) {
    const c10::cuda::CUDAGuard guard(x.device());
    const AttributeCall call{net, row_major(x), row_major(*u), keep_h, keep_g};
    bool served = false;
    cuda::for_math(kernel_dtype(x.scalar_type()), rounds_to_tf32(), [&](auto math) {
      served = serves_within_memory([&] { return attribute<decltype(math)>(call, found); });
    });
    if (served) return found;
    found = {};
  }
  if (way != Way::kBelow) return attribute_by_layers(net, x, *u, keep_h, keep_g);
  static const auto below = layer_below<decltype(mlp_attribute)>(op);
  return below.call(x, weights, slopes, u, keep_h, keep_g);
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("mlp_attribute", mlp_attribute);
}

}  // namespace xattr
