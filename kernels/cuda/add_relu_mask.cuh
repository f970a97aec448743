// add_relu_mask: the residual form of relu_mask, without a round trip of the sum. Twin of
// kernels/reference/add_relu_mask.py.
#pragma once

#include "cuda/elementwise.cuh"

namespace xattr::cuda {

// Rounded as PyTorch rounds the sum that it stores, so that mask and value are those of relu_mask(a + b).
template <typename T>
__device__ __forceinline__ T sum_of(T a, T b) {
  return narrowed<T>(widened(a) + widened(b));
}

template <typename T, int kSlope>
__global__ void __launch_bounds__(ElementwiseConfig::kThreads, kBlocks<kSlope>) add_relu_mask_vectors(
    const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ slope, T* __restrict__ h,
    int32_t* __restrict__ bits, int64_t n, uint32_t row_words, uint32_t words) {
  const auto values = [&](const Span& span) {
    Vector<T> sum = load_at(a + span.offset, span);
    const Vector<T> other = load_at(b + span.offset, span);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) sum.at[i] = sum_of(sum.at[i], other.at[i]);
    return sum;
  };
  activate_vectors<T, kSlope>(values, slope, h, bits, n, row_words, words);
}

template <typename T, int kSlope>
__global__ void __launch_bounds__(ElementwiseConfig::kThreads, kBlocks<kSlope>) add_relu_mask_ragged(
    const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ slope, T* __restrict__ h,
    int32_t* __restrict__ bits, int64_t n, uint32_t row_words, uint32_t words) {
  const auto value = [&](int64_t offset) {
    return sum_of(a[offset], b[offset]);
  };
  activate_ragged<T, kSlope>(value, slope, h, bits, n, row_words, words);
}

// a, b [rows, n] to h [rows, n] and bits [rows, ceil(n / 32)], all contiguous and not empty; slope as in relu_mask.
inline void add_relu_mask(
    Dtype dtype, SlopeKind kind, const void* a, const void* b, const void* slope, void* h, int32_t* bits, int64_t rows,
    int64_t n, cudaStream_t stream) {
  const bool whole = aligned(a) && aligned(b) && aligned(h) && (kind != kSlopes || aligned(slope));
  const Rows shape = rows_of(dtype, rows, n, kind, whole);
  for_elements(dtype, kind, [&](auto element, auto slopes) {
    using T = decltype(element);
    auto* kernel = shape.vectors ? add_relu_mask_vectors<T, slopes.value> : add_relu_mask_ragged<T, slopes.value>;
    XATTR_LAUNCH(
        kernel, blocks_of<T>(shape), ElementwiseConfig::kThreads, 0, stream, static_cast<const T*>(a),
        static_cast<const T*>(b), static_cast<const T*>(slope), static_cast<T*>(h), bits, shape.n, shape.row_words,
        shape.words);
  });
}

}  // namespace xattr::cuda
