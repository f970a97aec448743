// xattr::mask_mul on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/elementwise.h"
#include "signature.h"

namespace xattr {

at::Tensor mask_mul(const at::Tensor& t, const at::Tensor& bits, const std::optional<at::Tensor>& slope) {
  check_mask_mul(t, bits, slope);
  at::Tensor out = at::empty(t.sizes(), t.options());
  const at::Tensor source = t.contiguous(), mask = bits.contiguous();
  const SlopeArgument factor(slope);
  const auto kernel = elementwise(t.scalar_type()).mask_mul;
  for_word_ranges(source, [&](int64_t n, int64_t begin, int64_t end) {
    kernel(
        source.const_data_ptr(), mask.const_data_ptr<int32_t>(), factor.data, factor.by_column, out.mutable_data_ptr(),
        n, begin, end);
  });
  return out;
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("mask_mul", mask_mul);
}

}  // namespace xattr
