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

bool has_micro_kernels() {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
  static const bool has = instruction_set() == "AVX512";
  return has;
#else
  return false;
#endif
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
