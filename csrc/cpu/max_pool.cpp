// xattr::max_pool on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"
#include "signature.h"

namespace xattr {

std::tuple<at::Tensor, at::Tensor> max_pool(
    const at::Tensor& h, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool ceil_mode) {
  const Windows windows{kernel, stride, padding, dilation};
  check_max_pool(h, windows, ceil_mode);
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
