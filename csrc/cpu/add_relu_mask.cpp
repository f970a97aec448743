// xattr::add_relu_mask on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/elementwise.h"
#include "signature.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor> add_relu_mask(
    const at::Tensor& a, const at::Tensor& b, const std::optional<at::Tensor>& slope) {
  check_add_relu_mask(a, b, slope);
  const at::Tensor left = a.contiguous(), right = b.contiguous();
  at::Tensor h = at::empty(a.sizes(), a.options());
  at::Tensor bits = at::empty(bits_shape(a.sizes()), a.options().dtype(at::kInt));
  const SlopeArgument factor(slope);
  const auto kernel = elementwise(a.scalar_type()).add_relu_mask;
  for_word_ranges(left, [&](int64_t n, int64_t begin, int64_t end) {
    kernel(
        left.const_data_ptr(), right.const_data_ptr(), factor.data, factor.by_column, h.mutable_data_ptr(),
        bits.mutable_data_ptr<int32_t>(), n, begin, end);
  });
  return {h, bits};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("add_relu_mask", add_relu_mask);
}

}  // namespace xattr
