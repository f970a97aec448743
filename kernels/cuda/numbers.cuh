// Whole numbers and values that kernels compute with.
#pragma once

#include "cuda/vector.cuh"

namespace xattr::cuda {

// value as a tensor of T would hold it.
template <typename T>
__device__ __forceinline__ float rounded(float value) {
  return widened(narrowed<T>(value));
}

__host__ __device__ constexpr int ceil_div(int value, int by) {
  return (value + by - 1) / by;
}

__host__ __device__ constexpr int round_up(int value, int unit) {
  return ceil_div(value, unit) * unit;
}

}  // namespace xattr::cuda
