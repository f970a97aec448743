// What max_pool, pool_pull and pool_push share: the geometry of a launch, and which elements a thread has to do with.
//
// Every tensor is one of three spatial dimensions, the missing ones of size one, and its elements are a matrix: rows
// are positions and columns channels where channels come last; elsewhere rows are lines and columns lie along the last
// dimension. A thread has a pack of columns, 16 bytes of them where channels come last and are aligned. The windows
// that most networks have are constants of the kernels, which leaves no division and no loop.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"

namespace xattr::cuda {

struct PoolConfig {
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 4;  // of a multiprocessor at least: what registers a thread may have
};

// One spatial dimension: `in` elements under `out` windows.
struct PoolAxis {
  int in, out, kernel, stride, padding, dilation;
};

struct PoolShape {
  PoolAxis depth, height, width;
  int channels;       // that come last, or 1
  int rows, columns;  // of packs that the launch goes over
  int wide;           // the logarithm of the threads along a row
};

// A square window in two dimensions without dilation, known to the compiler; of any other, kSize is 0.
template <int kSize, int kStep>
struct Window {
  static __device__ __forceinline__ int depth(const PoolShape& shape) { return kSize > 0 ? 1 : shape.depth.kernel; }
  static __device__ __forceinline__ int size(const PoolAxis& axis) { return kSize > 0 ? kSize : axis.kernel; }
  static __device__ __forceinline__ int stride(const PoolAxis& axis) { return kSize > 0 ? kStep : axis.stride; }
  static __device__ __forceinline__ int dilation(const PoolAxis& axis) { return kSize > 0 ? 1 : axis.dilation; }
  // How many windows may cover an element.
  static __device__ __forceinline__ int overlap(const PoolAxis& axis) {
    return (size(axis) - 1) * dilation(axis) / stride(axis) + 1;
  }
};

// The thread's row and first column, counted in packs.
struct Cell {
  int row, column;
  bool there;
};

__device__ __forceinline__ Cell cell_of(const PoolShape& shape) {
  const int across = (shape.columns + (1 << shape.wide) - 1) >> shape.wide;  // blocks along a row
  const int down = static_cast<int>(blockIdx.x) / across, tall = PoolConfig::kThreads >> shape.wide;
  const int lane = threadIdx.x & ((1 << shape.wide) - 1);
  const int64_t row = static_cast<int64_t>(down) * tall + (threadIdx.x >> shape.wide);
  const int column = ((static_cast<int>(blockIdx.x) - down * across) << shape.wide) + lane;
  return {static_cast<int>(row), column, row < shape.rows && column < shape.columns};
}

// A position in a tensor of spatial size (D, H, W), and the first channel of the thread's pack.
struct Position {
  int image, d, h, w, c;
};

template <int kCount, bool kLast>
__device__ __forceinline__ Position position_of(const Cell& cell, int D, int H, int W) {
  Position at{};
  int line = cell.row;
  if (kLast) {
    line = cell.row / W;
    at.w = cell.row - line * W;
    at.c = cell.column * kCount;
  } else {
    at.w = cell.column;
  }
  const int plane = line / H;
  at.h = line - plane * H;
  at.image = D == 1 ? plane : plane / D;
  at.d = plane - at.image * D;
  return at;
}

// Where a position lies in its image of spatial size (., H, W).
template <bool kLast>
__device__ __forceinline__ int offset_of(int d, int h, int w, int c, int H, int W, int channels) {
  const int place = (d * H + h) * W + w;
  return kLast ? place * channels + c : place;
}

__device__ __forceinline__ bool within(int place, int size) {
  return place >= 0 && place < size;
}

// Elements of an image of the input and of the result.
__device__ __forceinline__ int64_t image_in(const PoolShape& shape) {
  return int64_t{shape.depth.in} * shape.height.in * shape.width.in * shape.channels;
}

__device__ __forceinline__ int64_t image_out(const PoolShape& shape) {
  return int64_t{shape.depth.out} * shape.height.out * shape.width.out * shape.channels;
}

// A pooling as it was asked for. axes: depth, height, width; images: of which each has `channels` that come last, or
// one. Kernels go over what is `pulled` (the input) or over the result.
struct PoolCall {
  const PoolAxis* axes;
  int64_t images;
  int channels;
  bool last;

  int64_t elements(bool pulled) const {
    int64_t count = channels;
    for (int i = 0; i < 3; ++i) count *= pulled ? axes[i].in : axes[i].out;
    return count;
  }
  int columns(bool pulled) const { return last ? channels : pulled ? axes[2].in : axes[2].out; }

  bool square(int size, int step) const {
    const PoolAxis &depth = axes[0], &height = axes[1], &width = axes[2];
    const auto is = [&](const PoolAxis& axis) {
      return axis.kernel == size && axis.stride == step && axis.dilation == 1;
    };
    return depth.kernel == 1 && depth.stride == 1 && depth.padding == 0 && is(height) && is(width);
  }
  // Whether windows of 2x2 tile an image whose lines are whole vectors, none of them beyond its end.
  bool tiled(int vector) const {
    const PoolAxis &height = axes[1], &width = axes[2];
    const bool inside = height.padding == 0 && width.padding == 0 && 2 * height.out <= height.in;
    return !last && square(2, 2) && inside && width.in % vector == 0;
  }

  // The launch over `rows` rows of `columns` packs.
  PoolShape shape(int64_t rows, int columns) const {
    int wide = 0;
    while (wide < 8 && (1 << wide) < columns) ++wide;
    return {axes[0], axes[1], axes[2], channels, static_cast<int>(rows), columns, wide};
  }
  // Over all elements of the input or of the result, in packs of `count` columns.
  PoolShape over(bool pulled, int count) const {
    return shape(images * elements(pulled) / columns(pulled), columns(pulled) / count);
  }
};

inline unsigned blocks_of(const PoolShape& shape) {
  const int tall = PoolConfig::kThreads >> shape.wide, across = ((shape.columns - 1) >> shape.wide) + 1;
  return blocks_of(shape.rows, tall) * static_cast<unsigned>(across);
}

// Whether the kernels can count such a call: images of fewer than 2^31 elements, places that an int holds.
inline bool countable(const int64_t (&axes)[3][6], int64_t images, int64_t channels, bool last) {
  constexpr int64_t most = int64_t{1} << 31, far = int64_t{1} << 29;
  int64_t in = channels, out = channels;
  for (const auto& [size, windows, kernel, stride, padding, dilation] : axes) {
    const int64_t reach = (windows - 1) * stride + (kernel - 1) * dilation;
    if (size >= far || windows >= far || reach >= far || padding >= far) return false;
    if (in > most / size || out > most / windows) return false;
    in *= size;
    out *= windows;
  }
  const int64_t columns = last ? channels : std::max(axes[2][0], axes[2][1]);
  const int64_t rows = images * std::max(in, out) / (last ? channels : std::min(axes[2][0], axes[2][1]));
  return in < most && out < most && rows < most - 4096 && (rows + 1) * ((columns + 255) / 256) < most;
}

// body(Window<...>{}) with the window as a constant where it is one of those that most networks have.
template <typename Body>
void for_window(const PoolCall& call, const Body& body) {
  if (call.square(2, 2)) return body(Window<2, 2>{});
  if (call.square(3, 2)) return body(Window<3, 2>{});
  return body(Window<0, 0>{});
}

template <int kCount>
using Count = std::integral_constant<int, kCount>;

// body(T{}, window, count, last): the element type, the window, the columns of a pack and whether channels come last,
// all but the first as constants. aligned: whether values are aligned to 16 bytes and indices to a vector's.
template <typename Body>
void for_pool(Dtype dtype, const PoolCall& call, bool aligned, const Body& body) {
  for_dtype(dtype, [&](auto element) {
    constexpr int vector = kVector<decltype(element)>;
    if (!call.last) return for_window(call, [&](auto window) { body(element, window, Count<1>{}, std::false_type{}); });
    if (!aligned || call.channels % vector != 0) return body(element, Window<0, 0>{}, Count<1>{}, std::true_type{});
    for_window(call, [&](auto window) { body(element, window, Count<vector>{}, std::true_type{}); });
  });
}

}  // namespace xattr::cuda
