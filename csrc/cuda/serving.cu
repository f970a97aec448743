// Which devices the kernels run on, and whether they are to be used.
#include "cuda/serving.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>

namespace xattr {
namespace {

constexpr int kOldest = 80;  // compute capability: that of xattr_cuda/ops/gpu.py
constexpr int kMostDevices = 64;

std::atomic<bool> in_use{true}, are_forced{false};
std::array<std::atomic<int8_t>, kMostDevices> found{};  // 0: not known yet, 1: yes, -1: no

__global__ void probe() {}

bool look_for_code(at::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  int major = 0, minor = 0;
  cudaFuncAttributes attributes;
  const bool here = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index()) == cudaSuccess &&
                    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index()) == cudaSuccess &&
                    10 * major + minor >= kOldest && cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;
  (void)cudaGetLastError();  // of a device without code, so that no later call reports it
  return here;
}

}  // namespace

std::string cuda_build() {
  std::string words = std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__) + " for";
  for (const int arch : {__CUDA_ARCH_LIST__}) words += " sm_" + std::to_string(arch / 10);
  return words;
}

void set_cuda_kernels(bool on, bool forced) {
  in_use.store(on, std::memory_order_relaxed);
  are_forced.store(forced, std::memory_order_relaxed);
}

bool cuda_kernels_forced() {
  return are_forced.load(std::memory_order_relaxed);
}

bool has_cuda_code(at::Device device) {
  if (device.index() < 0 || device.index() >= kMostDevices) return false;
  std::atomic<int8_t>& known = found[device.index()];
  if (known.load(std::memory_order_relaxed) == 0) {
    known.store(look_for_code(device) ? 1 : -1, std::memory_order_relaxed);
  }
  return known.load(std::memory_order_relaxed) > 0;
}

bool cuda_kernels_serve(at::ScalarType dtype, at::Device device) {
  const bool narrow = dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
  return narrow && in_use.load(std::memory_order_relaxed) && has_cuda_code(device);
}

}  // namespace xattr
