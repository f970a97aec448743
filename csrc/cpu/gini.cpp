// xattr::gini on the CPU: ATen's sort, then two passes over the sorted values.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sort.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/gemm.h"
#include "cpu/gini.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor> gini_op(const at::Tensor& a) {
  check_values("gini", "a", a);
  TORCH_CHECK_VALUE(a.dim() == 1, "xattr::gini: `a` has shape ", a.sizes(), "; wanted a vector [n] (flatten it first)");
  const PlainDispatch plain;
  const int64_t n = a.numel();
  at::Tensor gradient = at::empty(a.sizes(), a.options());
  if (n == 0) return {at::full({}, 0, a.options()), gradient};
  const auto [sorted, order] = at::sort(a.contiguous());
  double value = 0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, a.scalar_type(), "gini", [&] {
    value = gini<scalar_t>(
        sorted.const_data_ptr<scalar_t>(), order.const_data_ptr<int64_t>(), n, gradient.mutable_data_ptr<scalar_t>());
  });
  return {at::full({}, value, a.options()), gradient};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("gini", gini_op);
}

}  // namespace xattr
