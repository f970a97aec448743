// xattr::pool_pull on a GPU.
#include "cuda/pool_pull.cuh"

#include "cuda/pooling.h"

namespace xattr {
namespace {

at::Tensor pool_pull(
    const at::Tensor& g, const at::Tensor& idx, at::IntArrayRef shape, at::IntArrayRef kernel, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation) {
  const Windows windows{kernel, stride, padding, dilation};
  check_pool_pull(g, idx, shape, windows);
  const auto format = pool_format(idx);
  const PoolLaunch pool(shape, idx.sizes(), windows, format);
  if (!pool.serves(g)) {
    static const auto below = layer_below<decltype(pool_pull)>("pool_pull");
    return below.call(g, idx, shape, kernel, stride, padding, dilation);
  }
  const at::Tensor source = g.contiguous(format), indices = idx.contiguous(format);
  at::Tensor out = at::empty(shape, g.options().memory_format(format));
  pool.run(g, [&](cuda::Dtype dtype, auto... call) {
    cuda::pool_pull(dtype, source.const_data_ptr(), indices.const_data_ptr<uint8_t>(), out.mutable_data_ptr(), call...);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("pool_pull", pool_pull);
}

}  // namespace xattr
