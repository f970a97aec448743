// xattr::pool_pull on the CPU.
#include "cpu/pool_pull.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/pooling.h"

namespace xattr {
namespace {

template <typename T>
void run(const T* g, const uint8_t* idx, const Pool& pool, int64_t channels, T* out) {
  const Places places(pool);
  for_pool_rows(channels, pool.in() + pool.out(), [&](int64_t begin, int64_t end) {
    std::vector<SumOf<T>> sum(std::is_same_v<T, SumOf<T>> ? 0 : pool.in());
    for (int64_t i = begin; i < end; ++i) {
      T* channel = out + i * pool.in();
      if constexpr (std::is_same_v<T, SumOf<T>>) {
        pool_pull_channel(g + i * pool.out(), idx + i * pool.out(), pool, places, channel);
      } else {
        pool_pull_channel(g + i * pool.out(), idx + i * pool.out(), pool, places, sum.data());
        for (int64_t j = 0; j < pool.in(); ++j) channel[j] = static_cast<T>(sum[j]);
      }
    }
  });
}

template <typename T>
void run_channels_last(const T* g, const uint8_t* idx, const Pool& pool, int64_t batch, T* out) {
  const int64_t rows = pool.depth.in * pool.height.in, row = pool.width.in * pool.channels;
  const int64_t image = pool.out() * pool.channels;
  for_pool_rows(batch * rows, row, [&](int64_t begin, int64_t end) {
    std::vector<SumOf<T>> sum(pool.channels);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / rows, d = i % rows / pool.height.in, h = i % pool.height.in;
      pool_pull_row_channels_last(g + b * image, idx + b * image, pool, d, h, sum, out + i * row);
    }
  });
}

}  // namespace

at::Tensor pool_pull(
    const at::Tensor& g, const at::Tensor& idx, at::IntArrayRef shape, at::IntArrayRef kernel, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Windows windows{kernel, stride, padding, dilation};
  check_values("pool_pull", "g", g);
  check_windows("pool_pull", windows);
  check_batch("pool_pull", "shape", shape, windows.dims());
  check_idx("pool_pull", idx, shape, windows, g);
  TORCH_CHECK_VALUE(
      g.sizes() == idx.sizes(), "xattr::pool_pull: `g` has shape ", g.sizes(), "; wanted that of `idx`, ", idx.sizes());
  const auto format = pool_format(idx);
  const at::Tensor source = g.contiguous(format), indices = idx.contiguous(format);
  at::Tensor out = at::empty(shape, g.options().memory_format(format));
  const Pool pool = pool_of(shape, idx.sizes(), windows);
  XATTR_DISPATCH_POOL("pool_pull", g.scalar_type(), [&] {
    const scalar_t* from = source.const_data_ptr<scalar_t>();
    const uint8_t* at = indices.const_data_ptr<uint8_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    if (format == at::MemoryFormat::Contiguous) {
      run(from, at, pool, shape[0] * shape[1], to);
    } else {
      run_channels_last(from, at, pool, shape[0], to);
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("pool_pull", pool_pull);
}

}  // namespace xattr
