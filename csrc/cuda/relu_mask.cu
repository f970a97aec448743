// xattr::relu_mask on a GPU.
#include "cuda/relu_mask.cuh"

#include "cuda/elementwise.h"

namespace xattr {
namespace {

std::tuple<at::Tensor, at::Tensor> relu_mask(const at::Tensor& z, const Slope& slope) {
  check_relu_mask(z, slope);
  if (!elementwise_serves(z)) {
    static const auto below = layer_below<decltype(relu_mask)>("relu_mask");
    return below.call(z, slope);
  }
  const at::Tensor source = z.contiguous();
  at::Tensor h = at::empty(z.sizes(), z.options());
  at::Tensor bits = at::empty(bits_shape(z.sizes()), z.options().dtype(at::kInt));
  const SlopeArgument factor(slope);
  launch_rows(z, [&](int64_t rows, int64_t n, cudaStream_t stream) {
    cuda::relu_mask(
        kernel_dtype(z.scalar_type()), factor.kind, source.const_data_ptr(), factor.data, h.mutable_data_ptr(),
        bits.mutable_data_ptr<int32_t>(), rows, n, stream);
  });
  return {h, bits};
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("relu_mask", relu_mask);
}

}  // namespace xattr
