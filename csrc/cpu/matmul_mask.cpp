// xattr::matmul_mask on the CPU: the mask on the product's tiles, in place.
#include <torch/library.h>

#include "cpu/gemm.h"

namespace xattr {

at::Tensor matmul_mask(
    const at::Tensor& t, const at::Tensor& matrix, const std::optional<at::Tensor>& bits,
    const std::optional<at::Tensor>& slope) {
  check_values("matmul_mask", "t", t);
  check_like("matmul_mask", "matrix", matrix, "t", t);
  TORCH_CHECK_VALUE(
      matrix.dim() == 2 && matrix.size(0) == t.size(-1), "xattr::matmul_mask: `matrix` has shape ", matrix.sizes(),
      "; wanted [", t.size(-1), ", N] for `t` of shape ", t.sizes());
  const auto shape = with_columns(t, matrix.size(1));
  if (bits) check_bits("matmul_mask", *bits, shape, t);
  TORCH_CHECK_VALUE(bits || !slope, "xattr::matmul_mask: `slope` was given without `bits`; give both or neither");
  check_slope("matmul_mask", slope, t, matrix.size(1));
  const PlainDispatch plain;
  if (!bits) return product(as_matrix(t), matrix, NoEpilogue{}).view(shape);
  const at::Tensor mask = bits->contiguous();
  const SlopeArgument factor(slope);
  const auto kernel = elementwise(t.scalar_type()).mask_mul;
  at::Tensor out = product(as_matrix(t), matrix, [&](at::Tensor& values, int64_t begin, int64_t end) {
    void* data = values.mutable_data_ptr();
    const int32_t* words = mask.const_data_ptr<int32_t>();
    kernel(data, words, factor.data, factor.by_column, data, matrix.size(1), begin, end);
  });
  return out.view(shape);
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("matmul_mask", matmul_mask);
}

}  // namespace xattr
