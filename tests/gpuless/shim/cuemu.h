// CUDA C++ under g++: keywords, indices, barriers and functions of warps. Compile with -include cuemu.h and the
// headers of CUDA; start kernels with cuemu::launch(grid, block, shared_bytes, [&] { kernel(arguments ...); }).
//
// Seen: deadlocks of barriers and collectives, misaligned or forgotten asynchronous copies; by AddressSanitizer
// accesses out of bounds; by ThreadSanitizer, with threads of the system, races in shared and global memory within a
// block. Not emulated: lockstep of warps, blocks beside one another, textures, clusters, TMA, mbarrier, wgmma; with
// threads of the system, collectives of a part of a warp and threads that return before a barrier.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "block.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (cuemu::current->index)
#define blockIdx (cuemu::block_index)
#define blockDim (cuemu::block_size)
#define gridDim (cuemu::grid_size)

inline void __syncthreads() {
  cuemu::sync_block();
}

inline void __syncwarp(unsigned mask = cuemu::kAllLanes) {
  cuemu::sync_warp(mask);
}

inline void __threadfence() {}

// In a loop that waits for another block. Blocks run in order, so that it waits for one that has not begun.
inline void __nanosleep(unsigned) {
  cuemu::die("a block waits for a later one");
}

namespace cuemu {

template <typename To, typename From>
To bits_as(From from) {
  To to{};
  std::memcpy(static_cast<void*>(&to), &from, std::min(sizeof to, sizeof from));
  return to;
}

// The value of the lane that `source(lane)` names.
template <typename T, typename Source>
T shuffle(unsigned mask, T value, Source source) {
  Exchange& exchange = begin_collective();
  exchange.value[current->lane] = bits_as<uint64_t>(value);
  meet(mask, exchange);
  return bits_as<T>(exchange.value[source(static_cast<int>(current->lane))]);
}

inline int first_of_part(int lane, int width) {
  return lane / width * width;
}

}  // namespace cuemu

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return cuemu::shuffle(mask, value, [&](int lane) { return cuemu::first_of_part(lane, width) + source % width; });
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32) {
  return cuemu::shuffle(mask, value, [&](int lane) {
    const int source = lane ^ flipped;
    return source < cuemu::first_of_part(lane, width) + width ? source : lane;
  });
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
  return cuemu::shuffle(mask, value, [&](int lane) { return lane % width + by < width ? lane + by : lane; });
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32) {
  return cuemu::shuffle(mask, value, [&](int lane) { return lane % width >= by ? lane - by : lane; });
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  cuemu::Exchange& exchange = cuemu::begin_collective();
  exchange.value[cuemu::current->lane] = predicate != 0;
  cuemu::meet(mask, exchange);
  unsigned found = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) found |= static_cast<unsigned>(exchange.value[lane]) << lane;
  }
  return found;
}

inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

template <typename T>
T atomicAdd(T* place, T value) {
  T old;
  __atomic_load(place, &old, __ATOMIC_RELAXED);
  T sum = old + value;
  while (!__atomic_compare_exchange(place, &old, &sum, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) sum = old + value;
  return old;
}

template <typename T>
T atomicOr(T* place, T value) {
  return __atomic_fetch_or(place, value, __ATOMIC_RELAXED);
}

template <typename T>
void __stwb(T* place, T value) {
  *place = value;
}

template <typename T>
T __ldg(const T* place) {
  return *place;
}

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline int __popc(unsigned value) {
  return __builtin_popcount(value);
}

inline int __ffs(int value) {
  return __builtin_ffs(value);
}

inline int __clz(int value) {
  return value != 0 ? __builtin_clz(value) : 32;
}

inline float __uint_as_float(unsigned bits) {
  return cuemu::bits_as<float>(bits);
}

inline unsigned __float_as_uint(float value) {
  return cuemu::bits_as<unsigned>(value);
}
