// xattr::linear_relu_mask on the CPU: activation and mask on the product's tiles, in place.
#include <torch/library.h>

#include "cpu/gemm.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor> linear_relu_mask(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& slope) {
  check_values("linear_relu_mask", "x", x);
  check_like("linear_relu_mask", "weight", weight, "x", x);
  TORCH_CHECK_VALUE(
      weight.dim() == 2 && weight.size(1) == x.size(-1), "xattr::linear_relu_mask: `weight` has shape ", weight.sizes(),
      "; wanted [N, ", x.size(-1), "] for `x` of shape ", x.sizes());
  check_slope("linear_relu_mask", slope, x, weight.size(0));
  const PlainDispatch plain;
  const int64_t n = weight.size(0);
  const auto shape = with_columns(x, n);
  at::Tensor bits = at::empty(bits_shape(shape), x.options().dtype(at::kInt));
  const SlopeArgument factor(slope);
  const auto kernel = elementwise(x.scalar_type()).relu_mask;
  at::Tensor h = product(as_matrix(x), weight.t(), [&](at::Tensor& z, int64_t begin, int64_t end) {
    void* values = z.mutable_data_ptr();
    kernel(values, factor.data, factor.by_column, values, bits.mutable_data_ptr<int32_t>(), n, begin, end);
  });
  return {h.view(shape), bits};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("linear_relu_mask", linear_relu_mask);
}

}  // namespace xattr
