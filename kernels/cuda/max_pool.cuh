// max_pool: maxima of windows, and the place of each in its window, a byte. Twin of kernels/reference/max_pool.py.
#pragma once

#include "cuda/pooling.cuh"

namespace xattr::cuda {

// The best element of a window so far and its index, negative for none. The first maximum stays, as does NaN but for a
// later NaN.
struct Best {
  float value = 0.0f;
  int index = -1;

  __device__ __forceinline__ void meet(float other, int k) {
    if (index < 0 || other > value || other != other) {
      value = other;
      index = k;
    }
  }
};

template <typename T, typename W, int kCount, bool kLast>
__global__ void __launch_bounds__(PoolConfig::kThreads, PoolConfig::kBlocks)
    max_pool_windows(const T* __restrict__ h, T* __restrict__ out, uint8_t* __restrict__ idx, PoolShape shape) {
  const Cell cell = cell_of(shape);
  if (!cell.there) return;
  const PoolAxis &depth = shape.depth, &height = shape.height, &width = shape.width;
  const Position at = position_of<kCount, kLast>(cell, depth.out, height.out, width.out);
  const T* image = h + at.image * image_in(shape);
  Best best[kCount];
  int k = 0;
#pragma unroll
  for (int i = 0; i < W::depth(shape); ++i) {
    const int d = at.d * depth.stride - depth.padding + i * depth.dilation;
#pragma unroll
    for (int j = 0; j < W::size(height); ++j) {
      const int y = at.h * W::stride(height) - height.padding + j * W::dilation(height);
#pragma unroll
      for (int l = 0; l < W::size(width); ++l, ++k) {
        const int x = at.w * W::stride(width) - width.padding + l * W::dilation(width);
        if (!within(d, depth.in) || !within(y, height.in) || !within(x, width.in)) continue;
        const int place = offset_of<kLast>(d, y, x, at.c, height.in, width.in, shape.channels);
        const Pack<T, kCount> values = load<T, kCount>(image + place);
#pragma unroll
        for (int e = 0; e < kCount; ++e) best[e].meet(widened(values.at[e]), k);
      }
    }
  }
  Pack<T, kCount> maxima;
  Pack<uint8_t, kCount> places;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    maxima.at[e] = narrowed<T>(best[e].value);
    places.at[e] = static_cast<uint8_t>(best[e].index);
  }
  const int64_t target =
      at.image * image_out(shape) + offset_of<kLast>(at.d, at.h, at.w, at.c, height.out, width.out, shape.channels);
  store(out + target, maxima);
  store(idx + target, places);
}

// Windows of 2x2 that tile the image: a row is a line of windows, a pack half a vector of them.
template <typename T>
__global__ void __launch_bounds__(PoolConfig::kThreads, PoolConfig::kBlocks)
    max_pool_tiles(const T* __restrict__ h, T* __restrict__ out, uint8_t* __restrict__ idx, PoolShape shape) {
  constexpr int kCount = kVector<T> / 2;
  const Cell cell = cell_of(shape);
  if (!cell.there) return;
  const int image = cell.row / shape.height.out, y = cell.row - image * shape.height.out, W = shape.width.in;
  const T* top = h + (static_cast<int64_t>(image) * shape.height.in + 2 * y) * W + cell.column * kVector<T>;
  const Vector<T> lines[] = {load<T, kVector<T>>(top), load<T, kVector<T>>(top + W)};
  Pack<T, kCount> maxima;
  Pack<uint8_t, kCount> places;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    Best best;
#pragma unroll
    for (int k = 0; k < 4; ++k) best.meet(widened(lines[k / 2].at[2 * e + k % 2]), k);
    maxima.at[e] = narrowed<T>(best.value);
    places.at[e] = static_cast<uint8_t>(best.index);
  }
  const int64_t target = static_cast<int64_t>(cell.row) * shape.width.out + cell.column * kCount;
  store(out + target, maxima);
  store(idx + target, places);
}

// h to its maxima out and their places idx, all contiguous, or with channels last, and not empty; axes: of depth,
// height and width; images of `channels` that come last, or of one.
inline void max_pool(
    Dtype dtype, const void* h, void* out, uint8_t* idx, const PoolAxis* axes, int64_t images, int channels, bool last,
    cudaStream_t stream) {
  const PoolCall call{axes, images, channels, last};
  const bool whole = aligned(h) && aligned(out) && aligned(idx, 8);
  const int vector = dtype == Dtype::kFloat ? 4 : 8;
  if (whole && call.tiled(vector)) {
    const PoolShape shape = call.shape(images * axes[0].in * axes[1].out, axes[2].in / vector);
    return for_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      XATTR_LAUNCH(
          max_pool_tiles<T>, blocks_of(shape), PoolConfig::kThreads, 0, stream, static_cast<const T*>(h),
          static_cast<T*>(out), idx, shape);
    });
  }
  for_pool(dtype, call, whole, [&](auto element, auto window, auto count, auto channels_last) {
    using T = decltype(element);
    auto* kernel = max_pool_windows<T, decltype(window), count.value, channels_last.value>;
    const PoolShape shape = call.over(false, count.value);
    XATTR_LAUNCH(
        kernel, blocks_of(shape), PoolConfig::kThreads, 0, stream, static_cast<const T*>(h), static_cast<T*>(out), idx,
        shape);
  });
}

}  // namespace xattr::cuda
