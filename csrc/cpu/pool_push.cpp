// xattr::pool_push on the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"
#include "signature.h"

namespace xattr {

at::Tensor pool_push(
    const at::Tensor& v, const at::Tensor& idx, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation) {
  const Windows windows{kernel, stride, padding, dilation};
  check_pool_push(v, idx, windows);
  const auto format = pool_format(idx);
  const at::Tensor source = v.contiguous(format), indices = idx.contiguous(format);
  at::Tensor out = at::empty(idx.sizes(), v.options().memory_format(format));
  const Pool pool = pool_of(v.sizes(), idx.sizes(), windows, format);
  const Pooling& kernels = elementwise(v.scalar_type()).pooling;
  const bool planes = takes_frame(pool);
  const auto run = planes ? kernels.push_planes : kernels.push_windows;
  const int64_t part = planes ? windows_of(pool) : pool.channels;
  const int64_t visits = planes ? elements_of(pool) : pool.channels + window_size(pool);
  for_pool_parts(out.numel() / part, visits, [&](int64_t begin, int64_t end) {
    run(source.const_data_ptr(), indices.const_data_ptr<uint8_t>(), pool, begin, end, out.mutable_data_ptr());
  });
  return out;
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("pool_push", pool_push);
}

}  // namespace xattr
