// xattr::max_pool on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"

namespace xattr {
namespace {

// The smallest place from 0 on of a window that starts at `start` < 0 is in the input, for every window.
bool meets_input(const Axis& axis) {
  if (axis.dilation <= axis.in) return true;
  for (int64_t o = 0; o < axis.out && place_of(axis, o, 0) < 0; ++o) {
    if (axis.dilation - 1 - (-place_of(axis, o, 0) - 1) % axis.dilation >= axis.in) return false;
  }
  return true;
}

void check_room(const at::Tensor& h, const Windows& windows, bool ceil_mode) {
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

}  // namespace

std::tuple<at::Tensor, at::Tensor> max_pool(
    const at::Tensor& h, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool ceil_mode) {
  const Windows windows{kernel, stride, padding, dilation};
  check_values("max_pool", "h", h);
  check_windows("max_pool", windows);
  check_batch("max_pool", "h", h.sizes(), windows.dims());
  check_room(h, windows, ceil_mode);
  const auto format = pool_format(h);
  const auto shape = windows.pooled(h.sizes(), ceil_mode);
  const at::Tensor source = h.contiguous(format);
  at::Tensor out = at::empty(shape, h.options().memory_format(format));
  at::Tensor idx = at::empty(shape, h.options().dtype(at::kByte).memory_format(format));
  const Pool pool = pool_of(h.sizes(), shape, windows, format);
  const auto run = elementwise(h.scalar_type()).pooling.max_pool;
  for_pool_parts(out.numel() / pool.channels, pool.channels * window_size(pool), [&](int64_t begin, int64_t end) {
    run(source.const_data_ptr(), pool, begin, end, out.mutable_data_ptr(), idx.mutable_data_ptr<uint8_t>());
  });
  return {out, idx};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("max_pool", max_pool);
}

}  // namespace xattr
