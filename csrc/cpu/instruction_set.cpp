// Chooses the instruction set once: what was built, what the processor has, what ATEN_CPU_CAPABILITY allows.
#include <ATen/Version.h>

#include "cpu/isa/kernels.h"

namespace xattr {

using Table = const Elementwise& (*)(c10::ScalarType);

#define XATTR_DECLARE(isa)                               \
  const Elementwise& elementwise_##isa(c10::ScalarType); \
  const Narrow& narrow_##isa();                          \
  const BFloat16Tiles& bfloat16_##isa();                 \
  void transpose_##isa(const float*, int64_t, float*, int64_t, int64_t, int64_t);

XATTR_DECLARE(DEFAULT)
#ifdef XATTR_AVX2
XATTR_DECLARE(AVX2)
#endif
#ifdef XATTR_AVX512
XATTR_DECLARE(AVX512)
#endif

namespace {

struct Choice {
  const char* name;
  Table table;
  const Narrow& (*narrow)();
  const BFloat16Tiles& (*bfloat16)();
  Transpose transpose;
};

Choice choose() {
  [[maybe_unused]] const std::string capability = at::get_cpu_capability();
#ifdef XATTR_AVX512
  if (capability == "AVX512") return {"AVX512", elementwise_AVX512, narrow_AVX512, bfloat16_AVX512, transpose_AVX512};
#endif
#ifdef XATTR_AVX2
  if (capability == "AVX512" || capability == "AVX2")
    return {"AVX2", elementwise_AVX2, narrow_AVX2, bfloat16_AVX2, transpose_AVX2};
#endif
  return {"DEFAULT", elementwise_DEFAULT, narrow_DEFAULT, bfloat16_DEFAULT, transpose_DEFAULT};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const Elementwise& elementwise(c10::ScalarType dtype) {
  return choice().table(dtype);
}

Transpose transpose() {
  return choice().transpose;
}

const Narrow& narrow() {
  return choice().narrow();
}

const BFloat16Tiles& bfloat16() {
  return choice().bfloat16();
}

std::string instruction_set() {
  return choice().name;
}

}  // namespace xattr
