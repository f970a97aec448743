// What the kernels of a perceptron ask of a device.
#include "cuda/perceptron.h"

#include "cuda/mlp_attribute.cuh"
#include "cuda/mlp_attribute_backward.cuh"

#include <array>
#include <atomic>

namespace xattr {
namespace {

constexpr int kDevices = 64;
std::array<std::atomic<int>, kDevices> known{};  // capability + 1000 * multiprocessors, or zero

int asked(cudaDeviceAttr attribute, at::Device device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device.index()));
  return value;
}

// Whether tiles of a network's rows have room on a device.
template <typename T>
bool has_room(const Perceptron& net, at::Device where) {
  const auto kernel_net = kernel_network<T>(net);
  const cuda::Device device = kernel_device(where);
  return cuda::attribute_rows_of(device, kernel_net, 1) > 0 && cuda::backward_shape(device, kernel_net, 1).rows > 0;
}

}  // namespace

bool perceptron_kernels_serve(at::TensorList weights) {
  const at::Tensor& first = weights.front();
  if (!cuda_kernels_serve(first)) return false;
  const Perceptron net{weights.vec(), std::vector<double>(weights.size())};
  if (!within_limits(net)) return false;
  return first.scalar_type() == at::kFloat ? has_room<float>(net, first.device())
                                           : has_room<__half>(net, first.device());
}

cuda::Device kernel_device(at::Device device) {
  std::atomic<int>& place = known.at(device.index());
  int found = place.load(std::memory_order_relaxed);
  if (found == 0) {
    const int capability =
        10 * asked(cudaDevAttrComputeCapabilityMajor, device) + asked(cudaDevAttrComputeCapabilityMinor, device);
    found = capability + 1000 * asked(cudaDevAttrMultiProcessorCount, device);
    place.store(found, std::memory_order_relaxed);
  }
  return {found % 1000, found / 1000};
}

}  // namespace xattr
