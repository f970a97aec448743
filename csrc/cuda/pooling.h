// What the glue of the pooling kernels shares.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/dtype.h"
#include "cuda/pooling.cuh"
#include "cuda/serving.h"
#include "pool_geometry.h"
#include "signature.h"

namespace xattr {

// A pooling of an input of shape `in` to `out`, both [B, C, ...], as the kernels take it.
class PoolLaunch {
 public:
  PoolLaunch(at::IntArrayRef in, at::IntArrayRef out, const Windows& windows, at::MemoryFormat format)
      : last_(format != at::MemoryFormat::Contiguous),
        channels_(last_ ? in[1] : 1),
        images_(last_ ? in[0] : in[0] * in[1]) {
    const Pool pool = pool_of(in, out, windows, format);
    const Axis* given[] = {&pool.depth, &pool.height, &pool.width};
    int64_t wide[3][6];
    for (int i = 0; i < 3; ++i) {
      const Axis& axis = *given[i];
      const int64_t numbers[] = {axis.in, axis.out, axis.kernel, axis.stride, axis.padding, axis.dilation};
      std::copy(std::begin(numbers), std::end(numbers), wide[i]);
      axes_[i] = {static_cast<int>(axis.in),     static_cast<int>(axis.out),     static_cast<int>(axis.kernel),
                  static_cast<int>(axis.stride), static_cast<int>(axis.padding), static_cast<int>(axis.dilation)};
    }
    counts_ = cuda::countable(wide, images_, channels_, last_);
  }

  // Whether the kernels take it for values of the dtype and device of t.
  bool serves(const at::Tensor& t) const { return cuda_kernels_serve(t) && counts_; }

  // launch(dtype, axes, images, channels, last, stream) on the device of t, unless there is nothing to do.
  template <typename Launch>
  void run(const at::Tensor& t, const Launch& launch) const {
    if (images_ == 0) return;
    const c10::cuda::CUDAGuard guard(t.device());
    launch(
        kernel_dtype(t.scalar_type()), axes_, images_, static_cast<int>(channels_), last_,
        c10::cuda::getCurrentCUDAStream().stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  bool last_, counts_ = false;
  int64_t channels_, images_;
  cuda::PoolAxis axes_[3];
};

}  // namespace xattr
