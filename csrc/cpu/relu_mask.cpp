// xattr::relu_mask on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/elementwise.h"
#include "signature.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor> relu_mask(const at::Tensor& z, const std::optional<at::Tensor>& slope) {
  check_relu_mask(z, slope);
  const at::Tensor source = z.contiguous();
  at::Tensor h = at::empty(z.sizes(), z.options());
  at::Tensor bits = at::empty(bits_shape(z.sizes()), z.options().dtype(at::kInt));
  const SlopeArgument factor(slope);
  const auto kernel = elementwise(z.scalar_type()).relu_mask;
  for_word_ranges(source, [&](int64_t n, int64_t begin, int64_t end) {
    kernel(
        source.const_data_ptr(), factor.data, factor.by_column, h.mutable_data_ptr(), bits.mutable_data_ptr<int32_t>(),
        n, begin, end);
  });
  return {h, bits};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("relu_mask", relu_mask);
}

}  // namespace xattr
