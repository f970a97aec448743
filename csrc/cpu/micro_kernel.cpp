#include "cpu/micro_kernel.h"

#include <ATen/native/CPUBlas.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <memory>

#include "cpu/isa/kernels.h"

namespace xattr {

namespace {

constexpr std::align_val_t kCacheLine{64};

struct AlignedDelete {
  void operator()(float* p) const { ::operator delete[](p, kCacheLine); }
};

}  // namespace

bool has_micro_kernels([[maybe_unused]] c10::ScalarType dtype) {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
  static const bool has = instruction_set() == "AVX512";
  if (dtype == c10::kFloat) return has;
#endif
#if defined(CPUBLAS_BRGEMM_BF16BF16F32) && defined(__x86_64__)
  static const bool has_bf16 = instruction_set() == "AVX512" && __builtin_cpu_supports("avx512bf16");
  if (dtype == c10::kBFloat16) return has_bf16;
#endif
  return false;
}

void micro_product(
    int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
    bool accumulate) {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
  for (int64_t start = 0; start < k; start += kDepth) {
    at::native::cpublas::brgemm(
        m, n, std::min(kDepth, k - start), lda, ldb, ldc, accumulate || start > 0, a + start, b + start * ldb, c,
        /*is_vnni=*/false);
  }
#else
  TORCH_INTERNAL_ASSERT(false, "xattr: built without micro-kernels");
#endif
}

void micro_product(
    int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda, const c10::BFloat16* b, int64_t ldb, float* c,
    int64_t ldc, bool accumulate) {
#if defined(CPUBLAS_BRGEMM_BF16BF16F32)
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, accumulate, a, b, c, /*is_vnni=*/true);
#else
  TORCH_INTERNAL_ASSERT(false, "xattr: built without micro-kernels");
#endif
}

float* scratch(int64_t size) {
  thread_local std::unique_ptr<float[], AlignedDelete> memory;
  thread_local int64_t capacity = 0;
  if (capacity < size) {
    memory.reset(new (kCacheLine) float[size]);
    capacity = size;
  }
  return memory.get();
}

}  // namespace xattr
