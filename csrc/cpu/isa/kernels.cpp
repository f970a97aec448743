// Instantiates the vector code of kernels/cpu for the instruction set that this file is compiled for.
#include "cpu/isa/kernels.h"

#include <c10/util/Exception.h>

#include "cpu/add_relu_mask.h"
#include "cpu/bfloat16.h"
#include "cpu/mask_mul.h"
#include "cpu/max_pool.h"
#include "cpu/narrow.h"
#include "cpu/pool_pull.h"
#include "cpu/pool_push.h"
#include "cpu/relu_mask.h"
#include "cpu/transpose.h"

#define XATTR_JOIN(a, b) a##b
#define XATTR_FOR_ISA(name, isa) XATTR_JOIN(name, isa)

namespace xattr {
namespace {

// A kernel of type Pooling::Mover from one for elements of type T.
template <typename T, auto kernel>
void moved(const void* from, const uint8_t* idx, const Pool& pool, int64_t begin, int64_t end, void* out) {
  kernel(static_cast<const T*>(from), idx, pool, begin, end, static_cast<T*>(out));
}

template <typename T>
constexpr Pooling pooling_table = {
    [](const void* h, const Pool& pool, int64_t begin, int64_t end, void* out, uint8_t* idx) {
      max_pool<T>(static_cast<const T*>(h), pool, begin, end, static_cast<T*>(out), idx);
    },
    moved<T, pool_pull_planes<T>>,
    moved<T, pool_pull_rows<T>>,
    moved<T, pool_push_planes<T>>,
    moved<T, pool_push_windows<T>>,
};

template <typename T>
constexpr Elementwise table = {
    [](const void* z, const void* slope, bool by_column, void* h, int32_t* bits, int64_t n, int64_t begin,
       int64_t end) {
      relu_mask<T>(
          static_cast<const T*>(z), {static_cast<const T*>(slope), by_column}, static_cast<T*>(h), bits, n, begin, end);
    },
    [](const void* a, const void* b, const void* slope, bool by_column, void* h, int32_t* bits, int64_t n,
       int64_t begin, int64_t end) {
      add_relu_mask<T>(
          static_cast<const T*>(a), static_cast<const T*>(b), {static_cast<const T*>(slope), by_column},
          static_cast<T*>(h), bits, n, begin, end);
    },
    [](const void* t, const int32_t* bits, const void* slope, bool by_column, void* out, int64_t n, int64_t begin,
       int64_t end) {
      mask_mul<T>(
          static_cast<const T*>(t), bits, {static_cast<const T*>(slope), by_column}, static_cast<T*>(out), n, begin,
          end);
    },
    pooling_table<T>,
};

}  // namespace

const Elementwise& XATTR_FOR_ISA(elementwise_, CPU_CAPABILITY)(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return table<float>;
    case c10::ScalarType::Double:
      return table<double>;
    case c10::ScalarType::BFloat16:
      return table<c10::BFloat16>;
    case c10::ScalarType::Half:
      return table<c10::Half>;
    default:
      TORCH_CHECK(false, "xattr: no kernel for dtype ", dtype);
  }
}

void XATTR_FOR_ISA(transpose_, CPU_CAPABILITY)(
    const float* src, int64_t ld_src, float* dst, int64_t ld_dst, int64_t rows, int64_t columns) {
  transpose_matrix(src, ld_src, dst, ld_dst, rows, columns);
}

const Narrow& XATTR_FOR_ISA(narrow_, CPU_CAPABILITY)() {
  static constexpr Narrow table = {narrow_forward, narrow_cotangent, narrow_gradient};
  return table;
}

const BFloat16Tiles& XATTR_FOR_ISA(bfloat16_, CPU_CAPABILITY)() {
  static constexpr BFloat16Tiles table = {round_rows, widen_rows, pair_rows};
  return table;
}

}  // namespace xattr
