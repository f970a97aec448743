// xattr::add_relu_mask on a GPU.
#include "cuda/add_relu_mask.cuh"

#include "cuda/elementwise.h"

namespace xattr {
namespace {

std::tuple<at::Tensor, at::Tensor> add_relu_mask(const at::Tensor& a, const at::Tensor& b, const Slope& slope) {
  check_add_relu_mask(a, b, slope);
  if (!elementwise_serves(a)) {
    static const auto below = layer_below<decltype(add_relu_mask)>("add_relu_mask");
    return below.call(a, b, slope);
  }
  const at::Tensor left = a.contiguous(), right = b.contiguous();
  at::Tensor h = at::empty(a.sizes(), a.options());
  at::Tensor bits = at::empty(bits_shape(a.sizes()), a.options().dtype(at::kInt));
  const SlopeArgument factor(slope);
  launch_rows(a, [&](int64_t rows, int64_t n, cudaStream_t stream) {
    cuda::add_relu_mask(
        kernel_dtype(a.scalar_type()), factor.kind, left.const_data_ptr(), right.const_data_ptr(), factor.data,
        h.mutable_data_ptr(), bits.mutable_data_ptr<int32_t>(), rows, n, stream);
  });
  return {h, bits};
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("add_relu_mask", add_relu_mask);
}

}  // namespace xattr
