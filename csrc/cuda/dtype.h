// From PyTorch's dtypes to those of the kernels.
#pragma once

#include <c10/core/ScalarType.h>

#include "cuda/launch.cuh"

namespace xattr {

inline cuda::Dtype kernel_dtype(at::ScalarType dtype) {
  if (dtype == at::kFloat) return cuda::Dtype::kFloat;
  return dtype == at::kBFloat16 ? cuda::Dtype::kBFloat16 : cuda::Dtype::kHalf;
}

}  // namespace xattr
