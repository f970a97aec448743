// oneDNN's micro-kernels (brgemm), reached through ATen: products of tiles that lie in cache.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace xattr {

constexpr int64_t kVector = 16;  // elements of a vector of fp32
constexpr int64_t kDepth = 128;  // summed in one go: longer sums lose more to rounding than ATen's

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t round_up(int64_t a, int64_t b) {
  return divide_up(a, b) * b;
}

// Whether there are micro-kernels with factors of a dtype: built, and the processor has AVX-512, for bf16 with its dot
// product.
bool has_micro_kernels(c10::ScalarType dtype);

// c (+)= a b, for a [m, k], b [k, n] and c [m, n], row-major with leading dimensions. The sum is made kDepth at a time.
void micro_product(
    int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
    bool accumulate);

// The same for a of bf16 and b [k / 2, n, 2] of pairs of rows, k even. ldb counts pairs.
void micro_product(
    int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda, const c10::BFloat16* b, int64_t ldb, float* c,
    int64_t ldc, bool accumulate);

// Memory of the calling thread's own for at least `size` elements, aligned to cache lines, kept from call to call.
float* scratch(int64_t size);

}  // namespace xattr
