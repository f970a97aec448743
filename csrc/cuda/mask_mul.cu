// xattr::mask_mul on a GPU.
#include "cuda/mask_mul.cuh"

#include "cuda/elementwise.h"

namespace xattr {
namespace {

at::Tensor mask_mul(const at::Tensor& t, const at::Tensor& bits, const Slope& slope) {
  check_mask_mul(t, bits, slope);
  if (!elementwise_serves(t)) {
    static const auto below = layer_below<decltype(mask_mul)>("mask_mul");
    return below.call(t, bits, slope);
  }
  const at::Tensor source = t.contiguous(), mask = bits.contiguous();
  at::Tensor out = at::empty(t.sizes(), t.options());
  const SlopeArgument factor(slope);
  launch_rows(t, [&](int64_t rows, int64_t n, cudaStream_t stream) {
    cuda::mask_mul(
        kernel_dtype(t.scalar_type()), factor.kind, source.const_data_ptr(), mask.const_data_ptr<int32_t>(),
        factor.data, out.mutable_data_ptr(), rows, n, stream);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("mask_mul", mask_mul);
}

}  // namespace xattr
