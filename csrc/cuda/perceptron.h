// What the glue of the mlp_* operators shares: a network as kernels are given it, and which networks they serve.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "cpu/perceptron.h"
#include "cuda/dtype.h"
#include "cuda/perceptron_launch.cuh"
#include "cuda/perceptron_layers.h"
#include "cuda/serving.h"

namespace xattr {

// The device's compute capability and multiprocessors.
cuda::Device kernel_device(at::Device device);

// Whether the numbers of layers and of columns are such that kernels have room to count them. Shared memory may still
// be too little: then the kernels choose zero rows.
inline bool within_limits(const Perceptron& net) {
  bool fits = net.layers() <= cuda::kMostLayers;
  for (int64_t l = 0; l <= net.layers(); ++l) fits = fits && net.width(l) > 0 && net.width(l) <= cuda::kWidest;
  return fits;
}

// Who sweeps a network: the kernels of a whole perceptron, PyTorch's products with masks between them, or the layer
// below, which is Triton.
enum class Way { kKernels, kLayers, kBelow };

// That Triton sweeps whole, and faster than its layers are.
constexpr int64_t kTritonLayers = 8, kTritonWeights = 3 << 17;

// Of a network whose dtype and device the kernels take, what was the fastest on an H200; where the kernels are forced,
// these. Triton sweeps small networks of two-byte values, as kernels/triton/perceptron.py says which.
inline Way way_of(const Perceptron& net, const at::Tensor& like) {
  if (!cuda_kernels_serve(like)) return Way::kBelow;
  if (cuda_kernels_forced()) return within_limits(net) ? Way::kKernels : Way::kLayers;
  int64_t weights = 0;
  for (const at::Tensor& weight : net.weights) weights += weight.numel();
  const bool small = within_limits(net) && net.layers() <= kTritonLayers && weights <= kTritonWeights;
  return small && like.scalar_type() != at::kFloat ? Way::kBelow : Way::kLayers;
}

// Whether `run` served a call: not where it says so, nor where there was no memory for what its kernels keep.
template <class Run>
bool serves_within_memory(const Run& run) {
  try {
    return run();
  } catch (const c10::OutOfMemoryError&) {
    return false;
  }
}

// Whether fp32 is multiplied as TF32: what torch.get_float32_matmul_precision() says.
inline bool rounds_to_tf32() {
  return at::globalContext().float32MatmulPrecision() != at::Float32MatmulPrecision::HIGHEST;
}

// A slope as a tensor of this dtype would hold it.
inline float held(double slope, at::ScalarType dtype) {
  const auto value = static_cast<float>(slope);
  if (dtype == at::kBFloat16) return static_cast<c10::BFloat16>(value);
  if (dtype == at::kHalf) return static_cast<c10::Half>(value);
  return value;
}

template <typename T>
cuda::Network<T> kernel_network(const Perceptron& net) {
  cuda::Network<T> found;
  found.layers = static_cast<int>(net.layers());
  for (int64_t l = 0; l <= net.layers(); ++l) found.widths[l] = static_cast<int>(net.width(l));
  for (int64_t l = 1; l <= net.layers(); ++l) {
    found.weights[l] = static_cast<const T*>(net.weight(l).const_data_ptr());
    if (l < net.layers()) found.slopes[l] = held(net.slopes[l - 1], net.weight(l).scalar_type());
  }
  return found;
}

// t with unit stride between columns, as kernels read it.
inline at::Tensor row_major(const at::Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : t.contiguous();
}

// A matrix from row_major, or what is not there.
template <typename T>
cuda::Matrix<const T> kernel_matrix(const at::Tensor& t) {
  if (!t.defined()) return {};
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0)};
}

template <typename T>
T* kernel_values(const at::Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

}  // namespace xattr
