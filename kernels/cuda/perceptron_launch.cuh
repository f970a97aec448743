// How a perceptron is taken through the kernels on a device: what is served, and how many rows a block takes at once.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/perceptron.cuh"

namespace xattr::cuda {

// Compute capability, as in 90, and multiprocessors.
struct Device {
  int capability, processors;
};

// What a block may have of the shared memory of a multiprocessor, in bytes, from a compute capability on; each block
// takes kReserved more. 86 stands for all that have about 100 KiB: 8.6, 8.9 and 12.x.
struct Chip {
  int capability, shared_bytes;
};
constexpr int kReserved = 1024;
constexpr Chip kChips[] = {{80, 166912}, {86, 101376}, {90, 232448}, {100, 232448}};

inline const Chip& chip_of(const Device& device) {
  const int capability = device.capability;
  if (capability == 86 || capability == 89 || capability >= 120) return kChips[1];
  return capability >= 100 ? kChips[3] : capability >= 90 ? kChips[2] : kChips[0];
}

constexpr int kRowChoices[] = {64, 32, 16};

// Rows of a block: as many as fit, since each block reads all weights once a sweep, but no more than leave a block for
// each multiprocessor, and let it have `blocks` at once. Zero where not even the fewest fit: the network is not served.
// declared: bytes of shared memory that the kernel takes besides.
template <typename T>
int choose_rows(const Device& device, const Network<T>& net, int64_t batch, int blocks = 1, int declared = 0) {
  const int room = chip_of(device).shared_bytes;
  int chosen = 0;
  for (const int rows : kRowChoices) {
    const int bytes = shared_plan(net, rows).bytes + declared;
    if (bytes > room) continue;
    chosen = rows;
    if (batch >= int64_t{rows} * device.processors && blocks * (bytes + kReserved) <= room + kReserved) break;
  }
  return chosen;
}

// body(std::integral_constant<int, rows>{}).
template <class Body>
void for_rows(int rows, const Body& body) {
  if (rows == 64) return body(std::integral_constant<int, 64>{});
  if (rows == 32) return body(std::integral_constant<int, 32>{});
  return body(std::integral_constant<int, 16>{});
}

// body(Math{}) with the products of a dtype. tf32: of fp32 rounded to TF32.
template <class Body>
void for_math(Dtype dtype, bool tf32, const Body& body) {
  if (dtype == Dtype::kBFloat16) return body(Bf16{});
  if (dtype == Dtype::kHalf) return body(Fp16{});
  if (tf32) return body(Tf32{});
  return body(Fp32{});
}

// Lets a kernel have more dynamic shared memory than the 48 KiB that all have.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, int bytes) {
#ifdef __CUDACC__
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
#endif
}

}  // namespace xattr::cuda
