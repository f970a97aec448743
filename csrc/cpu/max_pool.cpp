// xattr::max_pool on the CPU.
#include "cpu/max_pool.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"

namespace xattr {
namespace {

// The smallest place from 0 on of a window that starts at `start` < 0 is in the input, for every window.
bool meets_input(const Axis& axis) {
  if (axis.dilation <= axis.in) return true;
  for (int64_t o = 0; o < axis.out && axis.place(o, 0) < 0; ++o) {
    if (axis.dilation - 1 - (-axis.place(o, 0) - 1) % axis.dilation >= axis.in) return false;
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

template <typename T>
void run(const T* h, const Pool& pool, int64_t batch, bool channels_last, T* out, uint8_t* idx) {
  const int64_t images = channels_last ? batch : batch * pool.channels;
  const int64_t inner = channels_last ? pool.channels : 1;  // channels side by side
  const int64_t rows = pool.depth.out * pool.height.out, row = pool.width.out * inner;
  for_pool_rows(images * rows, row * pool.window(), [&](int64_t begin, int64_t end) {
    Maxima<T> best(channels_last ? pool.channels : pool.width.out);
    for (int64_t i = begin; i < end; ++i) {
      const T* image = h + i / rows * pool.in() * inner;
      const int64_t od = i % rows / pool.height.out, oh = i % pool.height.out;
      const auto pool_row = channels_last ? max_pool_row_channels_last<T> : max_pool_row<T>;
      pool_row(image, pool, od, oh, best, out + i * row, idx + i * row);
    }
  });
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
  const Pool pool = pool_of(h.sizes(), shape, windows);
  XATTR_DISPATCH_POOL("max_pool", h.scalar_type(), [&] {
    run(source.const_data_ptr<scalar_t>(), pool, h.size(0), format != at::MemoryFormat::Contiguous,
        out.mutable_data_ptr<scalar_t>(), idx.mutable_data_ptr<uint8_t>());
  });
  return {out, idx};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("max_pool", max_pool);
}

}  // namespace xattr
