// How kernels are launched, by the element type that is only known at run time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#ifndef XATTR_LAUNCH  // where there is no GPU a test has its own
#define XATTR_LAUNCH(kernel, grid, block, shared, stream, ...) kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#endif

namespace xattr::cuda {

enum class Dtype : int { kFloat, kBFloat16, kHalf };

// body(T{}) with the element type of `dtype`.
template <typename Body>
void for_dtype(Dtype dtype, const Body& body) {
  if (dtype == Dtype::kFloat) return body(float{});
  if (dtype == Dtype::kBFloat16) return body(__nv_bfloat16{});
  return body(__half{});
}

inline unsigned blocks_of(int64_t items, int64_t a_block) {
  return static_cast<unsigned>((items + a_block - 1) / a_block);
}

}  // namespace xattr::cuda
