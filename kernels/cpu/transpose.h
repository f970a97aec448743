// Transpose of a matrix, in blocks of 16 x 16 registers where the instruction set has them.
#pragma once

#include <ATen/cpu/vec/vec.h>

#include <cstdint>

namespace xattr {
inline namespace CPU_CAPABILITY {

// src: rows x columns; dst: columns x rows.
inline void transpose_matrix(
    const float* src, int64_t ld_src, float* dst, int64_t ld_dst, int64_t rows, int64_t columns) {
#if defined(CPU_CAPABILITY_AVX512)
  at::vec::transpose_mxn<float>(src, ld_src, dst, ld_dst, static_cast<int>(rows), static_cast<int>(columns));
#else
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) dst[j * ld_dst + i] = src[i * ld_src + j];
  }
#endif
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
