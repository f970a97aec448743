// What the glue of the element-wise kernels shares.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "cuda/dtype.h"
#include "cuda/elementwise.cuh"
#include "cuda/serving.h"
#include "signature.h"

namespace xattr {

struct SlopeArgument {
  at::Tensor values;
  const void* data = nullptr;
  cuda::SlopeKind kind = cuda::kNoSlope;

  explicit SlopeArgument(const Slope& slope) {
    if (!slope) return;
    values = slope->contiguous();
    data = values.const_data_ptr();
    kind = values.size(0) > 1 ? cuda::kSlopes : cuda::kOneSlope;
  }
};

// Whether the kernels take values of this shape, dtype and device.
inline bool elementwise_serves(const at::Tensor& t) {
  const int64_t n = t.size(-1);
  return cuda_kernels_serve(t) && (t.numel() == 0 || cuda::countable(t.numel() / n, n));
}

// launch(rows, n, stream) on the device of t, unless there is nothing to do.
template <typename Launch>
void launch_rows(const at::Tensor& t, const Launch& launch) {
  if (t.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(t.device());
  launch(t.numel() / t.size(-1), t.size(-1), c10::cuda::getCurrentCUDAStream().stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace xattr
