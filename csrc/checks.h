// Argument checks of the operators: the twin of xattr_cuda/ops/signature.py. All raise ValueError.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "cpu/bits.h"

namespace xattr {

inline void check_values(const char* op, const char* name, const at::Tensor& t) {
  const auto dtype = t.scalar_type();
  TORCH_CHECK_VALUE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf, "xattr::", op, ": `",
      name, "` has dtype ", dtype, "; wanted fp32, fp64, bf16 or fp16");
  TORCH_CHECK_VALUE(t.dim() >= 1, "xattr::", op, ": `", name, "` is a scalar; wanted at least one dimension");
}

// `t` is floating and shares the dtype and device of `first`, which has been checked.
inline void check_like(
    const char* op, const char* name, const at::Tensor& t, const char* first_name, const at::Tensor& first) {
  check_values(op, name, t);
  TORCH_CHECK_VALUE(
      t.scalar_type() == first.scalar_type() && t.device() == first.device(), "xattr::", op, ": `", name, "` is ",
      t.scalar_type(), " on ", t.device(), ", `", first_name, "` is ", first.scalar_type(), " on ", first.device(),
      "; wanted one dtype and one device");
}

inline void check_slope(const char* op, const std::optional<at::Tensor>& slope, const at::Tensor& like, int64_t n) {
  if (!slope) return;
  TORCH_CHECK_VALUE(
      slope->dim() == 1 && (slope->size(0) == 1 || slope->size(0) == n), "xattr::", op, ": `slope` has shape ",
      slope->sizes(), "; wanted [1] or [", n, "]");
  TORCH_CHECK_VALUE(
      slope->scalar_type() == like.scalar_type() && slope->device() == like.device(), "xattr::", op, ": `slope` is ",
      slope->scalar_type(), " on ", slope->device(), "; wanted ", like.scalar_type(), " on ", like.device());
}

// The shape of the mask of values of shape `sizes`.
inline std::vector<int64_t> bits_shape(at::IntArrayRef sizes) {
  std::vector<int64_t> shape = sizes.vec();
  shape.back() = words_of(shape.back());
  return shape;
}

inline void check_bits(const char* op, const at::Tensor& bits, at::IntArrayRef sizes, const at::Tensor& like) {
  const auto wanted = bits_shape(sizes);
  TORCH_CHECK_VALUE(
      bits.sizes() == at::IntArrayRef(wanted) && bits.scalar_type() == at::kInt && bits.device() == like.device(),
      "xattr::", op, ": `bits` is ", bits.scalar_type(), " ", bits.sizes(), " on ", bits.device(), "; wanted Int ",
      at::IntArrayRef(wanted), " on ", like.device());
}

}  // namespace xattr
