// The 16 bytes that a thread reads or writes at once, and the elements in them.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <cstring>

#include "cuda/numbers.cuh"

namespace xattr::cuda {

// kCount elements that lie side by side.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

template <typename T>
constexpr int kVector = 16 / sizeof(T);  // elements of a 128-bit access

template <typename T>
using Vector = Pack<T, kVector<T>>;

template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using Type = uint8_t;
};
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

// By intrinsics, since the compiler takes plain accesses apart where that shares code with another branch.
//
// One access of as many bytes as the elements have, at an address that is a multiple of that, to what no thread of the
// kernel writes.
template <typename T, int kCount>
__device__ __forceinline__ Pack<T, kCount> load(const T* source) {
  const auto word = __ldg(reinterpret_cast<const typename Word<sizeof(T) * kCount>::Type*>(source));
  Pack<T, kCount> pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
}

template <typename T, int kCount>
__device__ __forceinline__ void store(T* target, const Pack<T, kCount>& pack) {
  typename Word<sizeof(T) * kCount>::Type word;
  memcpy(&word, &pack, sizeof(pack));
  __stwb(reinterpret_cast<decltype(word)*>(target), word);
}

// Whether a pointer may be read in vectors.
inline bool aligned(const void* pointer, int bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace xattr::cuda
