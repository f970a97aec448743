// xattr::pool_push on the CPU.
#include "cpu/pool_push.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"

namespace xattr {
namespace {

template <typename T>
void run(const T* v, const uint8_t* idx, const Pool& pool, int64_t batch, bool channels_last, T* out) {
  const int64_t images = channels_last ? batch : batch * pool.channels;
  const int64_t inner = channels_last ? pool.channels : 1;  // channels side by side
  const int64_t rows = pool.depth.out * pool.height.out, row = pool.width.out * inner;
  const Places places(pool);
  for_pool_rows(images * rows, row, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* image = v + i / rows * pool.in() * inner;
      const int64_t od = i % rows / pool.height.out, oh = i % pool.height.out;
      if (channels_last) {
        pool_push_row_channels_last(image, idx + i * row, pool, places, od, oh, out + i * row);
      } else {
        pool_push_row(image, idx + i * row, places, od, oh, out + i * row);
      }
    }
  });
}

}  // namespace

at::Tensor pool_push(
    const at::Tensor& v, const at::Tensor& idx, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation) {
  const Windows windows{kernel, stride, padding, dilation};
  check_values("pool_push", "v", v);
  check_windows("pool_push", windows);
  check_batch("pool_push", "v", v.sizes(), windows.dims());
  check_idx("pool_push", idx, v.sizes(), windows, v);
  const auto format = pool_format(idx);
  const at::Tensor source = v.contiguous(format), indices = idx.contiguous(format);
  at::Tensor out = at::empty(idx.sizes(), v.options().memory_format(format));
  const Pool pool = pool_of(v.sizes(), idx.sizes(), windows);
  XATTR_DISPATCH_POOL("pool_push", v.scalar_type(), [&] {
    run(source.const_data_ptr<scalar_t>(), indices.const_data_ptr<uint8_t>(), pool, v.size(0),
        format != at::MemoryFormat::Contiguous, out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("pool_push", pool_push);
}

}  // namespace xattr
