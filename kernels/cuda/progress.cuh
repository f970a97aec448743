// How blocks of one launch hand their results to others: tickets, and counters of what is done.
//
// A block takes its work by a ticket and awaits only blocks with earlier ones. Those have begun, and await only blocks
// before them in turn, so no wait lasts for ever, however few blocks a device has room for.
#pragma once

#include "cuda/rows.cuh"

namespace xattr::cuda {

constexpr int kProgressBytes = 16;  // of shared memory that a kernel which counts declares

// Adds one to `counter`, once all that the block has written is there for others; every thread is told what it held.
__device__ __forceinline__ unsigned count_up(unsigned* counter) {
  __shared__ unsigned before;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    before = atomicAdd(counter, 1u);
    __threadfence();
  }
  __syncthreads();
  return before;
}

// Waits until `counter` is at `wanted`; then all is there that blocks have written before they counted.
__device__ __forceinline__ void wait_for(const unsigned* counter, unsigned wanted) {
  if (threadIdx.x == 0) {
    while (*static_cast<const volatile unsigned*>(counter) < wanted) __nanosleep(200);
    __threadfence();
  }
  __syncthreads();
}

}  // namespace xattr::cuda
