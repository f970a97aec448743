// relu_mask: ReLU or LeakyReLU and its packed mask, one read and one write. Twin of kernels/reference/relu_mask.py.
#pragma once

#include "cuda/elementwise.cuh"

namespace xattr::cuda {

template <typename T, int kSlope>
__global__ void __launch_bounds__(ElementwiseConfig::kThreads, kBlocks<kSlope>) relu_mask_vectors(
    const T* __restrict__ z, const T* __restrict__ slope, T* __restrict__ h, int32_t* __restrict__ bits, int64_t n,
    uint32_t row_words, uint32_t words) {
  const auto values = [&](const Span& span) {
    return load_at(z + span.offset, span);
  };
  activate_vectors<T, kSlope>(values, slope, h, bits, n, row_words, words);
}

template <typename T, int kSlope>
__global__ void __launch_bounds__(ElementwiseConfig::kThreads, kBlocks<kSlope>) relu_mask_ragged(
    const T* __restrict__ z, const T* __restrict__ slope, T* __restrict__ h, int32_t* __restrict__ bits, int64_t n,
    uint32_t row_words, uint32_t words) {
  const auto value = [&](int64_t offset) {
    return z[offset];
  };
  activate_ragged<T, kSlope>(value, slope, h, bits, n, row_words, words);
}

// z [rows, n] to h [rows, n] and bits [rows, ceil(n / 32)], all contiguous and not empty; slope [1] or [n] or null.
inline void relu_mask(
    Dtype dtype, SlopeKind kind, const void* z, const void* slope, void* h, int32_t* bits, int64_t rows, int64_t n,
    cudaStream_t stream) {
  const bool whole = aligned(z) && aligned(h) && (kind != kSlopes || aligned(slope));
  const Rows shape = rows_of(dtype, rows, n, kind, whole);
  for_elements(dtype, kind, [&](auto element, auto slopes) {
    using T = decltype(element);
    auto* kernel = shape.vectors ? relu_mask_vectors<T, slopes.value> : relu_mask_ragged<T, slopes.value>;
    XATTR_LAUNCH(
        kernel, blocks_of<T>(shape), ElementwiseConfig::kThreads, 0, stream, static_cast<const T*>(z),
        static_cast<const T*>(slope), static_cast<T*>(h), bits, shape.n, shape.row_words, shape.words);
  });
}

}  // namespace xattr::cuda
