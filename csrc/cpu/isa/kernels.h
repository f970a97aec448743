// The vector code, compiled once for each instruction set and chosen when it runs.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <cstdint>
#include <string>

#include "cpu/pool.h"

namespace xattr {

// The kernels of max pooling at one dtype, on the parts begin .. end of all images: windows for max_pool and
// push_windows, images for *_planes, rows of the input for pull_rows.
struct Pooling {
  using Mover = void (*)(const void* from, const uint8_t* idx, const Pool& pool, int64_t begin, int64_t end, void* to);

  void (*max_pool)(const void* h, const Pool& pool, int64_t begin, int64_t end, void* out, uint8_t* idx);
  Mover pull_planes, pull_rows, push_planes, push_windows;
};

// The kernels at one dtype, element-wise and of pooling. `slope` may be null; sizes and ranges as in kernels/cpu.
struct Elementwise {
  void (*relu_mask)(
      const void* z, const void* slope, bool by_column, void* h, int32_t* bits, int64_t n, int64_t begin, int64_t end);
  void (*add_relu_mask)(
      const void* a, const void* b, const void* slope, bool by_column, void* h, int32_t* bits, int64_t n, int64_t begin,
      int64_t end);
  void (*mask_mul)(
      const void* t, const int32_t* bits, const void* slope, bool by_column, void* out, int64_t n, int64_t begin,
      int64_t end);
  Pooling pooling;
};

// The kernels of the fastest instruction set that was built and that the processor has.
const Elementwise& elementwise(c10::ScalarType dtype);

// Writes the transpose of src, a matrix of rows x columns, to dst. Leading dimensions in elements.
using Transpose = void (*)(const float* src, int64_t ld_src, float* dst, int64_t ld_dst, int64_t rows, int64_t columns);

// The transpose of that instruction set.
Transpose transpose();

// Products with a weight of few rows; arguments as in kernels/cpu/narrow.h.
struct Narrow {
  void (*forward)(
      int64_t rows, int64_t n, int64_t k, const float* a, int64_t lda, const float* w, float* out, int64_t ld_out);
  void (*cotangent)(
      int64_t rows, int64_t n, int64_t k, const float* g, int64_t ldg, const float* w, float* out, int64_t ld_out);
  void (*gradient)(
      int64_t rows, int64_t n, int64_t k, const float* g, int64_t ldg, const float* v, int64_t ldv, float* out,
      bool accumulate);
};

// Those of that instruction set.
const Narrow& narrow();

// Tiles of bf16; arguments as in kernels/cpu/bfloat16.h.
struct BFloat16Tiles {
  void (*round_rows)(
      const float* src, int64_t ld_src, c10::BFloat16* dst, int64_t ld_dst, int64_t rows, int64_t columns, bool even);
  void (*widen_rows)(
      const c10::BFloat16* src, int64_t ld_src, float* dst, int64_t ld_dst, int64_t rows, int64_t columns);
  void (*pair_rows)(
      const c10::BFloat16* src, int64_t ld_src, uint32_t* dst, int64_t ld_dst, int64_t rows, int64_t columns);
};

// Those of that instruction set.
const BFloat16Tiles& bfloat16();

// Its name: AVX512, AVX2 or DEFAULT.
std::string instruction_set();

}  // namespace xattr
