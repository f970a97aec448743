// pool_push: what each window's maximum was taken from, of a tangent. Twin of kernels/reference/pool_push.py.
#pragma once

#include "cuda/pooling.cuh"

namespace xattr::cuda {

template <typename T, typename W, int kCount, bool kLast>
__global__ void __launch_bounds__(PoolConfig::kThreads, PoolConfig::kBlocks)
    pool_push_windows(const T* __restrict__ v, const uint8_t* __restrict__ idx, T* __restrict__ out, PoolShape shape) {
  const Cell cell = cell_of(shape);
  if (!cell.there) return;
  const PoolAxis &depth = shape.depth, &height = shape.height, &width = shape.width;
  const Position at = position_of<kCount, kLast>(cell, depth.out, height.out, width.out);
  const int64_t target =
      at.image * image_out(shape) + offset_of<kLast>(at.d, at.h, at.w, at.c, height.out, width.out, shape.channels);
  const T* image = v + at.image * image_in(shape);
  const Pack<uint8_t, kCount> places = load<uint8_t, kCount>(idx + target);
  Pack<T, kCount> taken{};
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const int line = places.at[e] / W::size(width), l = places.at[e] - line * W::size(width);
    const int i = line / W::size(height), j = line - i * W::size(height);
    const int d = at.d * depth.stride - depth.padding + i * depth.dilation;
    const int y = at.h * W::stride(height) - height.padding + j * W::dilation(height);
    const int x = at.w * W::stride(width) - width.padding + l * W::dilation(width);
    if (i >= W::depth(shape) || !within(d, depth.in) || !within(y, height.in) || !within(x, width.in)) continue;
    taken.at[e] = image[offset_of<kLast>(d, y, x, at.c + e, height.in, width.in, shape.channels)];
  }
  store(out + target, taken);
}

// Windows of 2x2 that tile the image: a row is a line of windows, a pack half a vector of them.
template <typename T>
__global__ void __launch_bounds__(PoolConfig::kThreads, PoolConfig::kBlocks)
    pool_push_tiles(const T* __restrict__ v, const uint8_t* __restrict__ idx, T* __restrict__ out, PoolShape shape) {
  constexpr int kCount = kVector<T> / 2;
  const Cell cell = cell_of(shape);
  if (!cell.there) return;
  const int image = cell.row / shape.height.out, y = cell.row - image * shape.height.out, W = shape.width.in;
  const T* top = v + (static_cast<int64_t>(image) * shape.height.in + 2 * y) * W + cell.column * kVector<T>;
  const Vector<T> lines[] = {load<T, kVector<T>>(top), load<T, kVector<T>>(top + W)};
  const int64_t target = static_cast<int64_t>(cell.row) * shape.width.out + cell.column * kCount;
  const Pack<uint8_t, kCount> places = load<uint8_t, kCount>(idx + target);
  Pack<T, kCount> taken;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const int k = places.at[e];
    const float first = k == 0 ? widened(lines[0].at[2 * e]) : 0.0f;
    const float second = k == 1 ? widened(lines[0].at[2 * e + 1]) : first;
    const float third = k == 2 ? widened(lines[1].at[2 * e]) : second;
    taken.at[e] = narrowed<T>(k == 3 ? widened(lines[1].at[2 * e + 1]) : third);
  }
  store(out + target, taken);
}

// v and idx to out; the rest as in max_pool.
inline void pool_push(
    Dtype dtype, const void* v, const uint8_t* idx, void* out, const PoolAxis* axes, int64_t images, int channels,
    bool last, cudaStream_t stream) {
  const PoolCall call{axes, images, channels, last};
  const bool whole = aligned(v) && aligned(out) && aligned(idx, 8);
  const int vector = dtype == Dtype::kFloat ? 4 : 8;
  if (whole && call.tiled(vector)) {
    const PoolShape shape = call.shape(images * axes[0].in * axes[1].out, axes[2].in / vector);
    return for_dtype(dtype, [&](auto element) {
      using T = decltype(element);
      XATTR_LAUNCH(
          pool_push_tiles<T>, blocks_of(shape), PoolConfig::kThreads, 0, stream, static_cast<const T*>(v), idx,
          static_cast<T*>(out), shape);
    });
  }
  for_pool(dtype, call, whole, [&](auto element, auto window, auto count, auto channels_last) {
    using T = decltype(element);
    auto* kernel = pool_push_windows<T, decltype(window), count.value, channels_last.value>;
    const PoolShape shape = call.over(false, count.value);
    XATTR_LAUNCH(
        kernel, blocks_of(shape), PoolConfig::kThreads, 0, stream, static_cast<const T*>(v), idx, static_cast<T*>(out),
        shape);
  });
}

}  // namespace xattr::cuda
