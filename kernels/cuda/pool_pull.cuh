// pool_pull: cotangents of maxima to the places that they were taken from. Twin of kernels/reference/pool_pull.py.
//
// An element of the result looks through the windows that cover it and adds up those whose index names it: no two
// threads write to one place, and the order of the sum is that of the reference.
#pragma once

#include "cuda/pooling.cuh"

namespace xattr::cuda {

// Along one dimension, the i-th last window that covers place x, and which of its elements lies there.
struct Cover {
  int window, element;
  bool there;
};

template <typename W>
__device__ __forceinline__ Cover cover_of(const PoolAxis& axis, int x, int i) {
  const int window = (x + axis.padding) / W::stride(axis) - i;
  const int step = x + axis.padding - window * W::stride(axis), element = step / W::dilation(axis);
  const bool meets = element < W::size(axis) && element * W::dilation(axis) == step;
  return {window, element, meets && within(window, axis.out)};
}

template <typename T, typename W, int kCount, bool kLast>
__global__ void __launch_bounds__(PoolConfig::kThreads, PoolConfig::kBlocks)
    pool_pull_windows(const T* __restrict__ g, const uint8_t* __restrict__ idx, T* __restrict__ out, PoolShape shape) {
  const Cell cell = cell_of(shape);
  if (!cell.there) return;
  const PoolAxis &depth = shape.depth, &height = shape.height, &width = shape.width;
  const Position at = position_of<kCount, kLast>(cell, depth.in, height.in, width.in);
  const int64_t image = at.image * image_out(shape);
  float total[kCount] = {};
  // Of a known window the third dimension has one, of one element.
  const int planes = W::depth(shape) == 1 ? 1 : Window<0, 0>::overlap(depth);
#pragma unroll 1
  for (int i = 0; i < planes; ++i) {
    const Cover d = cover_of<Window<0, 0>>(depth, at.d, i);
    if (!d.there) continue;
#pragma unroll
    for (int j = 0; j < W::overlap(height); ++j) {
      const Cover y = cover_of<W>(height, at.h, j);
      if (!y.there) continue;
#pragma unroll
      for (int l = 0; l < W::overlap(width); ++l) {
        const Cover x = cover_of<W>(width, at.w, l);
        if (!x.there) continue;
        const int64_t place =
            image + offset_of<kLast>(d.window, y.window, x.window, at.c, height.out, width.out, shape.channels);
        const int k = (d.element * W::size(height) + y.element) * W::size(width) + x.element;
        const Pack<uint8_t, kCount> places = load<uint8_t, kCount>(idx + place);
        const Pack<T, kCount> values = load<T, kCount>(g + place);
#pragma unroll
        for (int e = 0; e < kCount; ++e) {
          if (places.at[e] == k) total[e] += widened(values.at[e]);
        }
      }
    }
  }
  Pack<T, kCount> sums;
#pragma unroll
  for (int e = 0; e < kCount; ++e) sums.at[e] = narrowed<T>(total[e]);
  const int64_t target =
      at.image * image_in(shape) + offset_of<kLast>(at.d, at.h, at.w, at.c, height.in, width.in, shape.channels);
  store(out + target, sums);
}

// Windows of 2x2 that tile the image: a row is a line of windows, or what is left below the last; a pack is half a
// vector of them, and a thread writes the two vectors that they cover.
template <typename T>
__global__ void __launch_bounds__(PoolConfig::kThreads, PoolConfig::kBlocks)
    pool_pull_tiles(const T* __restrict__ g, const uint8_t* __restrict__ idx, T* __restrict__ out, PoolShape shape) {
  constexpr int kCount = kVector<T> / 2;
  const Cell cell = cell_of(shape);
  if (!cell.there) return;
  const int H = shape.height.in, W = shape.width.in, pairs = (H + 1) / 2;
  const int image = cell.row / pairs, y = cell.row - image * pairs;
  Pack<T, kCount> values{};
  Pack<uint8_t, kCount> places{};
  if (y < shape.height.out) {
    const int64_t source = (static_cast<int64_t>(image) * shape.height.out + y) * shape.width.out;
    values = load<T, kCount>(g + source + cell.column * kCount);
    places = load<uint8_t, kCount>(idx + source + cell.column * kCount);
  }
  Vector<T> lines[2];
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      lines[k / 2].at[2 * e + k % 2] = places.at[e] == k ? values.at[e] : narrowed<T>(0.0f);
    }
  }
  T* top = out + (static_cast<int64_t>(image) * H + 2 * y) * W + cell.column * kVector<T>;
  store(top, lines[0]);
  if (2 * y + 1 < H) store(top + W, lines[1]);
}

// g and idx to out; the rest as in max_pool.
inline void pool_pull(
    Dtype dtype, const void* g, const uint8_t* idx, void* out, const PoolAxis* axes, int64_t images, int channels,
    bool last, cudaStream_t stream) {
  const PoolCall call{axes, images, channels, last};
  const bool whole = aligned(g) && aligned(out) && aligned(idx, 8);
  const int vector = dtype == Dtype::kFloat ? 4 : 8;
  if (whole && call.tiled(vector)) {
    const PoolShape shape = call.shape(images * axes[0].in * ((axes[1].in + 1) / 2), axes[2].in / vector);
    return for_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      XATTR_LAUNCH(
          pool_pull_tiles<T>, blocks_of(shape), PoolConfig::kThreads, 0, stream, static_cast<const T*>(g), idx,
          static_cast<T*>(out), shape);
    });
  }
  for_pool(dtype, call, whole, [&](auto element, auto window, auto count, auto channels_last) {
    using T = decltype(element);
    auto* kernel = pool_pull_windows<T, decltype(window), count.value, channels_last.value>;
    const PoolShape shape = call.over(true, count.value);
    XATTR_LAUNCH(
        kernel, blocks_of(shape), PoolConfig::kThreads, 0, stream, static_cast<const T*>(g), idx, static_cast<T*>(out),
        shape);
  });
}

}  // namespace xattr::cuda
