// What the checks of the operators (signature.h) are made of. All raise ValueError.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/bits.h"
#include "cpu/pool.h"

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

// What the windows of a pooling are, as the operators take it.
struct Windows {
  at::IntArrayRef kernel, stride, padding, dilation;

  int64_t dims() const { return static_cast<int64_t>(kernel.size()); }

  // The axis `d` of an input of `size` elements, with the number of windows along it.
  Axis axis(int64_t d, int64_t size, bool ceil_mode) const {
    Axis axis{size, 0, kernel[d], stride[d], padding[d], dilation[d]};
    axis.out = pooled_size(axis, ceil_mode);
    return axis;
  }

  // The shape that pooling an input of shape `sizes` has.
  std::vector<int64_t> pooled(at::IntArrayRef sizes, bool ceil_mode) const {
    std::vector<int64_t> shape = sizes.vec();
    for (int64_t d = 0; d < dims(); ++d) shape[d + 2] = axis(d, sizes[d + 2], ceil_mode).out;
    return shape;
  }
};

// One number for each of one to three spatial dimensions, and what PyTorch asks of them.
inline void check_windows(const char* op, const Windows& windows) {
  const size_t dims = windows.kernel.size();
  const std::vector<int64_t> counts = {
      windows.dims(), static_cast<int64_t>(windows.stride.size()), static_cast<int64_t>(windows.padding.size()),
      static_cast<int64_t>(windows.dilation.size())};
  TORCH_CHECK_VALUE(
      dims >= 1 && dims <= 3 && counts == std::vector<int64_t>(4, windows.dims()), "xattr::", op,
      ": `kernel`, `stride`, `padding` and `dilation` have ", at::IntArrayRef(counts),
      " numbers; wanted one for each of 1 to 3 spatial dimensions");
  constexpr int64_t largest = std::numeric_limits<int32_t>::max();  // so that no product of two overflows
  const auto check_numbers = [&](const char* name, at::IntArrayRef numbers) {
    const bool fits = std::all_of(numbers.begin(), numbers.end(), [&](int64_t n) { return n >= 1 && n <= largest; });
    TORCH_CHECK_VALUE(fits, "xattr::", op, ": `", name, "` is ", numbers, "; wanted numbers from 1 to ", largest);
  };
  check_numbers("kernel", windows.kernel);
  check_numbers("stride", windows.stride);
  check_numbers("dilation", windows.dilation);
  std::vector<int64_t> limits(dims);
  int64_t window = 1;
  bool fits = true;
  for (size_t d = 0; d < dims; ++d) {
    limits[d] = ((windows.kernel[d] - 1) * windows.dilation[d] + 1) / 2;
    fits = fits && windows.padding[d] >= 0 && windows.padding[d] <= limits[d];
    window = std::min(window * windows.kernel[d], kMaxWindow + 1);
  }
  TORCH_CHECK_VALUE(
      fits, "xattr::", op, ": `padding` is ", windows.padding, "; wanted numbers from 0 to half of the window, ",
      at::IntArrayRef(limits));
  TORCH_CHECK_VALUE(
      window <= kMaxWindow, "xattr::", op, ": `kernel` is ", windows.kernel, "; wanted windows of at most ", kMaxWindow,
      " elements, whose index is a uint8");
}

inline void check_batch(const char* op, const char* name, at::IntArrayRef shape, int64_t dims) {
  const bool some = shape.size() >= 1 && std::all_of(shape.begin() + 1, shape.end(), [](int64_t n) { return n > 0; });
  TORCH_CHECK_VALUE(
      static_cast<int64_t>(shape.size()) == dims + 2 && some, "xattr::", op, ": `", name, "` has shape ", shape,
      "; wanted [B, C] and ", dims, " spatial dimensions, none empty but B");
}

// uint8, of the shape that pooling an input of shape `sizes` has with or without ceil_mode.
inline void check_idx(
    const char* op, const at::Tensor& idx, at::IntArrayRef sizes, const Windows& windows, const at::Tensor& like) {
  const auto least = windows.pooled(sizes, false), most = windows.pooled(sizes, true);
  bool fits = idx.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t d = 0; fits && d < idx.dim(); ++d) fits = idx.size(d) == least[d] || idx.size(d) == most[d];
  TORCH_CHECK_VALUE(
      fits && idx.scalar_type() == at::kByte && idx.device() == like.device(), "xattr::", op, ": `idx` is ",
      idx.scalar_type(), " ", idx.sizes(), " on ", idx.device(), "; wanted Byte ", at::IntArrayRef(least),
      " (with ceil_mode ", at::IntArrayRef(most), ") on ", like.device());
}

}  // namespace xattr
