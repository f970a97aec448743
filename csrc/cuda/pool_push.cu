// xattr::pool_push on a GPU.
#include "cuda/pool_push.cuh"

#include "cuda/pooling.h"

namespace xattr {
namespace {

at::Tensor pool_push(
    const at::Tensor& v, const at::Tensor& idx, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation) {
  const Windows windows{kernel, stride, padding, dilation};
  check_pool_push(v, idx, windows);
  const auto format = pool_format(idx);
  const PoolLaunch pool(v.sizes(), idx.sizes(), windows, format);
  if (!pool.serves(v)) {
    static const auto below = layer_below<decltype(pool_push)>("pool_push");
    return below.call(v, idx, kernel, stride, padding, dilation);
  }
  const at::Tensor source = v.contiguous(format), indices = idx.contiguous(format);
  at::Tensor out = at::empty(idx.sizes(), v.options().memory_format(format));
  pool.run(v, [&](cuda::Dtype dtype, auto... call) {
    cuda::pool_push(dtype, source.const_data_ptr(), indices.const_data_ptr<uint8_t>(), out.mutable_data_ptr(), call...);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(xattr, CUDA, m) {
  m.impl("pool_push", pool_push);
}

}  // namespace xattr
