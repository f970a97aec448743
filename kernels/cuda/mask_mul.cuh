// mask_mul: apply a packed activation pattern, one read and one write. Twin of kernels/reference/mask_mul.py.
#pragma once

#include "cuda/elementwise.cuh"

namespace xattr::cuda {

template <typename T, int kSlope>
__global__ void __launch_bounds__(ElementwiseConfig::kThreads, kBlocks<kSlope>) mask_mul_vectors(
    const T* __restrict__ t, const int32_t* __restrict__ bits, const T* __restrict__ slope, T* __restrict__ out,
    int64_t n, uint32_t row_words, uint32_t words) {
  constexpr int kSteps = ElementwiseConfig::kSteps;
  const Lanes<T> lanes;
  const uint32_t kept = lanes.keeps(words) ? static_cast<uint32_t>(bits[lanes.word(lanes.member)]) : 0;
  Span spans[kSteps];
  Vector<T> values[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    spans[step] = span_of(lanes.word(step), lanes.member * kVector<T>, n, row_words, words);
    values[step] = load_at(t + spans[step].offset, spans[step]);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const Factors<T, kSlope> factors(slope, spans[step]);
    const uint32_t word = __shfl_sync(kAllLanes, kept, lanes.group * Lanes<T>::kOfWord + step);
    const uint32_t own = word >> (lanes.member * kVector<T>);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const T value = values[step].at[i];
      values[step].at[i] = own >> i & 1 ? value : sloped<T, kSlope>(value, factors.at(i));
    }
    store_at(out + spans[step].offset, spans[step], values[step]);
  }
}

template <typename T, int kSlope>
__global__ void __launch_bounds__(ElementwiseConfig::kThreads, kBlocks<kSlope>) mask_mul_ragged(
    const T* __restrict__ t, const int32_t* __restrict__ bits, const T* __restrict__ slope, T* __restrict__ out,
    int64_t n, uint32_t row_words, uint32_t words) {
  constexpr int kSteps = ElementwiseConfig::kRaggedSteps;
  const int lane = threadIdx.x % 32;
  const uint32_t first = warp_index() * kSteps;
  const uint32_t kept = lane < kSteps && first + lane < words ? static_cast<uint32_t>(bits[first + lane]) : 0;
  Span spans[kSteps];
  T values[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    spans[step] = span_of(first + step, lane, n, row_words, words);
    values[step] = spans[step].left > 0 ? t[spans[step].offset] : narrowed<T>(0.0f);
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const bool on = __shfl_sync(kAllLanes, kept, step) >> lane & 1;
    const T other = sloped<T, kSlope>(values[step], factor<T, kSlope>(slope, spans[step]));
    if (spans[step].left > 0) out[spans[step].offset] = on ? values[step] : other;
  }
}

// t [rows, n] and bits [rows, ceil(n / 32)] to out [rows, n], all contiguous and not empty; slope as in relu_mask.
inline void mask_mul(
    Dtype dtype, SlopeKind kind, const void* t, const int32_t* bits, const void* slope, void* out, int64_t rows,
    int64_t n, cudaStream_t stream) {
  const bool whole = aligned(t) && aligned(out) && (kind != kSlopes || aligned(slope));
  const Rows shape = rows_of(dtype, rows, n, kind, whole);
  for_elements(dtype, kind, [&](auto element, auto slopes) {
    using T = decltype(element);
    auto* kernel = shape.vectors ? mask_mul_vectors<T, slopes.value> : mask_mul_ragged<T, slopes.value>;
    XATTR_LAUNCH(
        kernel, blocks_of<T>(shape), ElementwiseConfig::kThreads, 0, stream, static_cast<const T*>(t), bits,
        static_cast<const T*>(slope), static_cast<T*>(out), shape.n, shape.row_words, shape.words);
  });
}

}  // namespace xattr::cuda
