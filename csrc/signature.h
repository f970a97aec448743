// What each operator accepts: one function an operator, for the glue of every device. Twins of the checks of
// xattr_cuda/ops/signature.py.
#pragma once

#include "checks.h"

namespace xattr {

using Slope = std::optional<at::Tensor>;

inline void check_relu_mask(const at::Tensor& z, const Slope& slope) {
  check_values("relu_mask", "z", z);
  check_slope("relu_mask", slope, z, z.size(-1));
}

inline void check_mask_mul(const at::Tensor& t, const at::Tensor& bits, const Slope& slope) {
  check_values("mask_mul", "t", t);
  check_bits("mask_mul", bits, t.sizes(), t);
  check_slope("mask_mul", slope, t, t.size(-1));
}

inline void check_add_relu_mask(const at::Tensor& a, const at::Tensor& b, const Slope& slope) {
  check_values("add_relu_mask", "a", a);
  check_like("add_relu_mask", "b", b, "a", a);
  TORCH_CHECK_VALUE(
      a.sizes() == b.sizes(), "xattr::add_relu_mask: `a` has shape ", a.sizes(), " and `b` ", b.sizes(),
      "; wanted one shape (expand the smaller first)");
  check_slope("add_relu_mask", slope, a, a.size(-1));
}

// The smallest place from 0 on of a window that starts at `start` < 0 is in the input, for every window.
inline bool meets_input(const Axis& axis) {
  if (axis.dilation <= axis.in) return true;
  for (int64_t o = 0; o < axis.out && place_of(axis, o, 0) < 0; ++o) {
    if (axis.dilation - 1 - (-place_of(axis, o, 0) - 1) % axis.dilation >= axis.in) return false;
  }
  return true;
}

inline void check_room(const at::Tensor& h, const Windows& windows, bool ceil_mode) {
  for (int64_t d = 0; d < windows.dims(); ++d) {
    TORCH_CHECK_VALUE(
        windows.axis(d, h.size(d + 2), ceil_mode).out > 0, "xattr::max_pool: `h` has shape ", h.sizes(),
        "; wanted room for a window of ", windows.kernel);
  }
  for (int64_t d = 0; d < windows.dims(); ++d) {
    TORCH_CHECK_VALUE(
        meets_input(windows.axis(d, h.size(d + 2), ceil_mode)), "xattr::max_pool: `dilation` is ", windows.dilation,
        "; wanted no window that holds padding alone");
  }
}

inline void check_max_pool(const at::Tensor& h, const Windows& windows, bool ceil_mode) {
  check_values("max_pool", "h", h);
  check_windows("max_pool", windows);
  check_batch("max_pool", "h", h.sizes(), windows.dims());
  check_room(h, windows, ceil_mode);
}

inline void check_pool_pull(const at::Tensor& g, const at::Tensor& idx, at::IntArrayRef shape, const Windows& windows) {
  check_values("pool_pull", "g", g);
  check_windows("pool_pull", windows);
  check_batch("pool_pull", "shape", shape, windows.dims());
  check_idx("pool_pull", idx, shape, windows, g);
  TORCH_CHECK_VALUE(
      g.sizes() == idx.sizes(), "xattr::pool_pull: `g` has shape ", g.sizes(), "; wanted that of `idx`, ", idx.sizes());
}

inline void check_pool_push(const at::Tensor& v, const at::Tensor& idx, const Windows& windows) {
  check_values("pool_push", "v", v);
  check_windows("pool_push", windows);
  check_batch("pool_push", "v", v.sizes(), windows.dims());
  check_idx("pool_push", idx, v.sizes(), windows, v);
}

}  // namespace xattr
