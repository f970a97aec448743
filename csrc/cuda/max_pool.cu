// xattr::max_pool on a GPU.
#include "cuda/max_pool.cuh"

#include "cuda/pooling.h"

namespace xattr {
namespace {

std::tuple<at::Tensor, at::Tensor> max_pool(
    const at::Tensor& h, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool ceil_mode) {
  const Windows windows{kernel, stride, padding, dilation};
  check_max_pool(h, windows, ceil_mode);
  const auto format = pool_format(h);
  const auto shape = windows.pooled(h.sizes(), ceil_mode);
  const PoolLaunch pool(h.sizes(), shape, windows, format);
  if (!pool.serves(h)) {
    static const auto below = layer_below<decltype(max_pool)>("max_pool");
    return below.call(h, kernel, stride, padding, dilation, ceil_mode);
  }
  const at::Tensor source = h.contiguous(format);
  at::Tensor out = at::empty(shape, h.options().memory_format(format));
  at::Tensor idx = at::empty(shape, h.options().dtype(at::kByte).memory_format(format));
  pool.run(h, [&](cuda::Dtype dtype, auto... call) {
    cuda::max_pool(dtype, source.const_data_ptr(), out.mutable_data_ptr(), idx.mutable_data_ptr<uint8_t>(), call...);
  });
  return {out, idx};
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("max_pool", max_pool);
}

}  // namespace xattr
