// xattr::pool_pull on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"
#include "signature.h"

namespace xattr {

at::Tensor pool_pull(
    const at::Tensor& g, const at::Tensor& idx, at::IntArrayRef shape, at::IntArrayRef kernel, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Windows windows{kernel, stride, padding, dilation};
  check_pool_pull(g, idx, shape, windows);
  const auto format = pool_format(idx);
  const at::Tensor source = g.contiguous(format), indices = idx.contiguous(format);
  at::Tensor out = at::empty(shape, g.options().memory_format(format));
  const Pool pool = pool_of(shape, idx.sizes(), windows, format);
  const Pooling& kernels = elementwise(g.scalar_type()).pooling;
  const bool planes = takes_frame(pool);
  const auto run = planes ? kernels.pull_planes : kernels.pull_rows;
  const int64_t part = planes ? elements_of(pool) : pool.width.in * pool.channels;
  for_pool_parts(out.numel() / part, part, [&](int64_t begin, int64_t end) {
    run(source.const_data_ptr(), indices.const_data_ptr<uint8_t>(), pool, begin, end, out.mutable_data_ptr());
  });
  return out;
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("pool_pull", pool_pull);
}

}  // namespace xattr
