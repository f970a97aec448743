// The twins, for g++, of the PTX instructions in kernels/cuda/instructions.cuh: same names, same fragments.
//
// Asynchronous copies land as late as the waits allow, which shows waits that are missing; with CUEMU_EAGER in the
// environment at once, which shows copies into memory that is still being read.
#pragma once

#include "cuemu.h"

namespace xattr::cuda {

inline void* dynamic_shared() {
  return cuemu::shared_memory.get();
}

// ---- asynchronous copies ----

namespace emulated {

using SharedWord __attribute__((may_alias)) = uint32_t;  // memory that holds values of some other type
using SharedHalf __attribute__((may_alias)) = uint16_t;

inline const bool eager = std::getenv("CUEMU_EAGER") != nullptr;

// By words of 4 bytes: sanitizers see no memcpy that the compiler has turned into moves, and ThreadSanitizer remembers
// four accesses to 8 bytes at most.
inline void land(const cuemu::Copy& copy) {
  const auto* source = static_cast<const unsigned char*>(copy.source);
  auto* target = static_cast<SharedWord*>(copy.target);
  for (int i = 0; i < copy.size; i += 4) {
    uint32_t word = 0;
    for (int j = i; j < i + 4 && j < copy.bytes; ++j) word |= static_cast<uint32_t>(source[j]) << j % 4 * 8;
    target[i / 4] = word;
  }
}

inline void land_all_but(size_t groups) {
  auto& pending = cuemu::current->pending;
  for (; pending.size() > groups; pending.pop_front()) {
    for (const cuemu::Copy& copy : pending.front()) land(copy);
  }
}

}  // namespace emulated

template <int SIZE>
void cp_async(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % SIZE != 0 || reinterpret_cast<uintptr_t>(global) % SIZE != 0)
    cuemu::die("an asynchronous copy is misaligned");
  if (bytes < 0 || bytes > SIZE) cuemu::die("an asynchronous copy takes more bytes than it has");
  const cuemu::Copy copy{shared, global, SIZE, bytes};
  if (emulated::eager)
    emulated::land(copy);
  else
    cuemu::current->open.push_back(copy);
}

inline void cp_async_commit() {
  cuemu::current->pending.push_back(std::move(cuemu::current->open));
  cuemu::current->open.clear();
}

template <int GROUPS>
void cp_async_wait() {
  emulated::land_all_but(GROUPS);
}

// ---- fragments ----

namespace emulated {

template <bool TRANSPOSED>
void load_matrices(uint32_t (&words)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) cuemu::die("a row of ldmatrix is misaligned");
  cuemu::Exchange& exchange = cuemu::begin_collective();
  exchange.address[cuemu::current->lane] = row;
  cuemu::meet(cuemu::kAllLanes, exchange);
  const int group = cuemu::current->lane / 4, pair = cuemu::current->lane % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto value = [&](int stored_row, int column) {
      return static_cast<const SharedHalf*>(exchange.address[8 * matrix + stored_row])[column];
    };
    if constexpr (TRANSPOSED)
      words[matrix] = value(pair, group) | static_cast<uint32_t>(value(pair + 1, group)) << 16;
    else
      words[matrix] = static_cast<const SharedWord*>(exchange.address[8 * matrix + group])[pair / 2];
  }
}

inline double half_as_double(uint32_t word, int i) {
  return __half2float(cuemu::bits_as<__half>(static_cast<uint16_t>(word >> 16 * i)));
}

inline double bfloat16_as_double(uint32_t word, int i) {
  return cuemu::bits_as<float>(word >> 16 * i << 16);
}

inline double tf32_as_double(uint32_t word, int) {
  return cuemu::bits_as<float>(word & 0xffffe000u);  // the hardware ignores the low bits
}

// d += a b for a [16, DEPTH] and b [DEPTH, 8]; a register holds PER values. Summed in double and rounded once.
template <int DEPTH, int PER, double (&VALUE)(uint32_t, int)>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuemu::Exchange& exchange = cuemu::begin_collective();
  std::copy(a, a + 4, exchange.fragment[cuemu::current->lane]);
  std::copy(b, b + 2, exchange.fragment[cuemu::current->lane] + 4);
  cuemu::meet(cuemu::kAllLanes, exchange);
  const int group = cuemu::current->lane / 4, quad = cuemu::current->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + i / 2 * 8, column = 2 * quad + i % 2;
    double sum = d[i];
    for (int k = 0; k < DEPTH; ++k) {
      const int half = k / (DEPTH / 2), lane = k % (DEPTH / 2) / PER;
      const uint32_t left = exchange.fragment[row % 8 * 4 + lane][row / 8 + 2 * half];
      const uint32_t right = exchange.fragment[column * 4 + lane][4 + half];
      sum += VALUE(left, k % PER) * VALUE(right, k % PER);
    }
    d[i] = static_cast<float>(sum);
  }
}

}  // namespace emulated

inline void ldmatrix_x4(uint32_t (&words)[4], const void* row) {
  emulated::load_matrices<false>(words, row);
}

inline void ldmatrix_x4_transposed(uint32_t (&words)[4], const void* row) {
  emulated::load_matrices<true>(words, row);
}

inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const __half*) {
  emulated::multiply_add<16, 2, emulated::half_as_double>(d, a, b);
}

inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const __nv_bfloat16*) {
  emulated::multiply_add<16, 2, emulated::bfloat16_as_double>(d, a, b);
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulated::multiply_add<8, 1, emulated::tf32_as_double>(d, a, b);
}

inline uint32_t round_to_tf32(float value) {
  const uint32_t bits = cuemu::bits_as<uint32_t>(value);
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace xattr::cuda
