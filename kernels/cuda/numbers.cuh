// Values of every dtype as fp32, in which they are computed, and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace xattr::cuda {

__device__ __forceinline__ float widened(float value) {
  return value;
}

__device__ __forceinline__ float widened(__half value) {
  return __half2float(value);
}

__device__ __forceinline__ float widened(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

// The nearest value of type T, ties to even.
template <typename T>
__device__ __forceinline__ T narrowed(float value);

template <>
__device__ __forceinline__ float narrowed<float>(float value) {
  return value;
}

template <>
__device__ __forceinline__ __half narrowed<__half>(float value) {
  return __float2half_rn(value);
}

template <>
__device__ __forceinline__ __nv_bfloat16 narrowed<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

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
