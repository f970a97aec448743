// xattr::dual_weight_grad on the CPU: the second pair accumulates onto the first.
#include <torch/library.h>

#include "checks.h"
#include "cpu/gemm.h"

namespace xattr {

namespace {

void check_pair(const char* left_name, const at::Tensor& left, const char* right_name, const at::Tensor& right) {
  TORCH_CHECK_VALUE(
      left.dim() >= 2 && left.dim() == right.dim() &&
          left.sizes().slice(0, left.dim() - 1) == right.sizes().slice(0, left.dim() - 1),
      "xattr::dual_weight_grad: `", left_name, "` has shape ", left.sizes(), " and `", right_name, "` ", right.sizes(),
      "; wanted [..., N] and [..., K] with the same leading dimensions");
}

}  // namespace

at::Tensor dual_weight_grad(
    const at::Tensor& delta, const at::Tensor& h, const std::optional<at::Tensor>& g,
    const std::optional<at::Tensor>& v) {
  check_values("dual_weight_grad", "delta", delta);
  check_like("dual_weight_grad", "h", h, "delta", delta);
  check_pair("delta", delta, "h", h);
  TORCH_CHECK_VALUE(
      g.has_value() == v.has_value(), "xattr::dual_weight_grad: `g` and `v` are one pair; give both or neither");
  const PlainDispatch plain;
  if (!g) return transposed_product(as_matrix(delta), as_matrix(h));
  check_like("dual_weight_grad", "g", *g, "delta", delta);
  check_like("dual_weight_grad", "v", *v, "delta", delta);
  check_pair("g", *g, "v", *v);
  TORCH_CHECK_VALUE(
      delta.size(-1) == g->size(-1) && h.size(-1) == v->size(-1), "xattr::dual_weight_grad: the pairs end in [",
      delta.size(-1), ", ", h.size(-1), "] and [", g->size(-1), ", ", v->size(-1), "]; wanted the same [N, K]");
  const at::Tensor left = as_matrix(*g), right = as_matrix(*v);
  return transposed_product(as_matrix(delta), as_matrix(h), &left, &right);
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("dual_weight_grad", dual_weight_grad);
}

}  // namespace xattr
