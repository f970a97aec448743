// The glue of csrc/cuda over kernels that g++ has compiled, as a library of operators for PyTorch: it takes CPU
// tensors.
#include <torch/library.h>

#include "cuemu.h"

static int64_t launches = 0;
static bool exhausted = false;

static void take_memory() {
  TORCH_CHECK_WITH(OutOfMemoryError, !exhausted, "no memory is left, as a test wishes");
}

extern "C" cudaError_t cudaMemsetAsync(void* start, int byte, size_t count, cudaStream_t) {
  std::memset(start, byte, count);
  return cudaSuccess;
}

#define XATTR_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (take_memory(), ++launches, cuemu::launch(grid, block, shared, [&] { kernel(__VA_ARGS__); }))

#include "cpu/perceptron.cpp"
#include "cuda/add_relu_mask.cu"
#include "cuda/mask_mul.cu"
#include "cuda/max_pool.cu"
#include "cuda/mlp_attribute.cu"
#include "cuda/mlp_attribute_backward.cu"
#include "cuda/perceptron_layers.cu"
#include "cuda/pool_pull.cu"
#include "cuda/pool_push.cu"
#include "cuda/relu_mask.cu"

namespace xattr {

static bool in_use = true, are_forced = true;
static cuda::Device device{80, 4};

cuda::Device kernel_device(at::Device) {
  return device;
}

bool cuda_kernels_forced() {
  return are_forced;
}

bool cuda_kernels_serve(at::ScalarType dtype, at::Device) {
  return in_use && dtype != at::kDouble;
}

}  // namespace xattr

TORCH_LIBRARY(xattr_glue, m) {
  m.def("launches", [] { return launches; });
  m.def("pretend", [](int64_t capability, int64_t processors) {
    xattr::device = {static_cast<int>(capability), static_cast<int>(processors)};
  });
  m.def("exhaust", [](bool now) { exhausted = now; });
  m.def("use", [](bool on, bool forced) { xattr::in_use = on, xattr::are_forced = forced; });
}
