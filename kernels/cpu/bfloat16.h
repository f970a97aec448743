// Matrices of fp32 as factors of bf16 for the micro-kernels, and back.
#pragma once

#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace xattr {
inline namespace CPU_CAPABILITY {

// dst = src in bf16; an odd row is followed by a zero.
inline void round_rows(
    const float* src, int64_t ld_src, c10::BFloat16* dst, int64_t ld_dst, int64_t rows, int64_t columns, bool even) {
  for (int64_t r = 0; r < rows; ++r) {
    at::vec::convert(src + r * ld_src, dst + r * ld_dst, columns);
    if (even && columns % 2 != 0) dst[r * ld_dst + columns] = 0;
  }
}

// dst = src in fp32.
inline void widen_rows(
    const c10::BFloat16* src, int64_t ld_src, float* dst, int64_t ld_dst, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto* from = reinterpret_cast<const uint16_t*>(src + r * ld_src);
    auto* to = reinterpret_cast<uint32_t*>(dst + r * ld_dst);
    for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<uint32_t>(from[c]) << 16;
  }
}

// dst: [ceil(rows / 2), columns, 2], the elements of two rows by turns; an odd row is paired with zeros. ld_dst counts
// pairs.
inline void pair_rows(
    const c10::BFloat16* src, int64_t ld_src, uint32_t* dst, int64_t ld_dst, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += 2) {
    const auto* first = reinterpret_cast<const uint16_t*>(src + r * ld_src);
    uint32_t* pairs = dst + r / 2 * ld_dst;
    if (r + 1 < rows) {
      const uint16_t* second = first + ld_src;
      for (int64_t c = 0; c < columns; ++c) pairs[c] = first[c] | static_cast<uint32_t>(second[c]) << 16;
    } else {
      for (int64_t c = 0; c < columns; ++c) pairs[c] = first[c];
    }
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
