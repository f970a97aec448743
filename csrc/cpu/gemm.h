// Matrix products of the operators, with an epilogue on tiles that are still in cache.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "cpu/elementwise.h"

namespace xattr {

// Products run below autograd, which has its derivative elsewhere, and in the dtype that they are given: autocast has
// been applied by whoever called.
struct PlainDispatch {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

// [..., N] as [rows, N].
inline at::Tensor as_matrix(const at::Tensor& t) {
  return t.dim() == 2 ? t : t.reshape({t.size(-1) == 0 ? t.numel() : t.numel() / t.size(-1), t.size(-1)});
}

// The shape of t with another last dimension.
inline std::vector<int64_t> with_columns(const at::Tensor& t, int64_t columns) {
  std::vector<int64_t> shape = t.sizes().vec();
  shape.back() = columns;
  return shape;
}

// Whether a product [m, k] x [k, n] runs on our tiles of oneDNN's micro-kernels: fp32 with AVX-512, and a right factor
// that stays in the second-level cache. Elsewhere ATen's product is as fast or faster.
bool tiles_pay(const at::Tensor& like, int64_t m, int64_t n, int64_t k);

// Rows of a tile of a product with m rows.
int64_t tile_rows(int64_t m);

// A right factor in the form that the micro-kernels take: rows of contiguous elements, `stride` apart.
struct RightFactor {
  const float* data;
  int64_t stride;
};

// b as a right factor for the calling thread. A transposed b is transposed back into memory of the thread's own, valid
// until its next call: cheaper than reading what another core has just written.
RightFactor right_factor(const at::Tensor& b);

// out[rows] = a[rows] b for the rows begin .. end. a, out: fp32 with unit column stride.
void multiply_rows(const at::Tensor& a, const RightFactor& b, at::Tensor& out, int64_t begin, int64_t end);

// t with unit column stride.
inline at::Tensor row_major(const at::Tensor& t) {
  return t.stride(1) == 1 && t.stride(0) >= t.size(1) ? t : t.contiguous();
}

// t as it is if it is row-major or the transpose of a row-major matrix, else a copy that is row-major.
inline at::Tensor row_or_column_major(const at::Tensor& t) {
  return t.stride(0) == 1 && t.stride(1) >= t.size(0) ? t : row_major(t);
}

// a.T b, or its sum with c.T d when they are given: [rows, N], [rows, K] to [N, K].
at::Tensor transposed_product(
    const at::Tensor& a, const at::Tensor& b, const at::Tensor* c = nullptr, const at::Tensor* d = nullptr);

// out += a.T b.
void add_transposed_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b);

// For a product that needs none.
struct NoEpilogue {
  void operator()(at::Tensor&, int64_t, int64_t) const {}
};

// a b for a [M, K] and b [K, N] of any strides. epilogue(out, begin, end) is called once for every word (32 elements
// of a row) of out: the words begin .. end of the contiguous result are ready.
template <typename Epilogue>
at::Tensor product(const at::Tensor& a, const at::Tensor& b, Epilogue epilogue) {
  const int64_t m = a.size(0), n = b.size(1);
  if (!tiles_pay(a, m, n, a.size(1))) {
    at::Tensor out = at::mm(a, b);
    if constexpr (!std::is_same_v<Epilogue, NoEpilogue>) {
      for_word_ranges(out, [&](int64_t, int64_t begin, int64_t end) { epilogue(out, begin, end); });
    }
    return out;
  }
  const at::Tensor left = row_major(a), right = row_or_column_major(b);
  at::Tensor out = at::empty({m, n}, a.options());
  const int64_t rows = tile_rows(m), words = words_of(n);
  at::parallel_for(0, (m + rows - 1) / rows, 1, [&](int64_t first, int64_t last) {
    const RightFactor factor = right_factor(right);
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t begin = tile * rows, end = std::min(m, begin + rows);
      multiply_rows(left, factor, out, begin, end);
      epilogue(out, begin * words, end * words);
    }
  });
  return out;
}

// The operators of these names.
std::tuple<at::Tensor, at::Tensor> linear_relu_mask(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& slope);
at::Tensor matmul_mask(
    const at::Tensor& t, const at::Tensor& matrix, const std::optional<at::Tensor>& bits,
    const std::optional<at::Tensor>& slope);

}  // namespace xattr
