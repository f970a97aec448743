// Weight gradients of a span of rows from the values that the sweeps have left, and the sum of what the blocks found.
#pragma once

#include "cuda/backward_arguments.cuh"

namespace xattr::cuda {

// The left and the right factor of a layer's gradient, of one chain: cotangents at its output, tangents at its input.
template <typename T>
struct Pair {
  Matrix<const T> left, right;
};

template <typename T>
__device__ __forceinline__ Matrix<const T> readable(const Matrix<T>& matrix) {
  return {matrix.values, matrix.stride};
}

template <typename T>
__device__ __forceinline__ Matrix<const T> from_row(const Matrix<const T>& matrix, int64_t row) {
  return {matrix.row(row), matrix.stride};
}

template <typename T>
__device__ __forceinline__ Pair<T> task_pair(const BackwardArguments<T>& args, const RowSpan<T>& span, int l) {
  const bool top = l == args.net.layers;
  return {
      top ? from_row(args.delta, span.first) : readable(span.saved(args.delta_places[l], args.net.widths[l])),
      from_row(args.h[l], span.first)};
}

template <typename T>
__device__ __forceinline__ Pair<T> own_pair(const BackwardArguments<T>& args, const RowSpan<T>& span, int l) {
  return {from_row(args.g[l], span.first), readable(span.saved(args.v_places[l - 1], args.net.widths[l - 1]))};
}

// The tiles of the pairs in the order in which the gradients need them: for each trained layer and [kPairRows,
// kColumns] of its gradient, the rows of the task's chain, then of the own. A stage holds [kStep, kPairRows] of the
// left factor and [kStep, kColumns] of the right one.
template <typename T>
struct PairTiles {
  const BackwardArguments<T>& args;
  const RowSpan<T>& span;
  int layer = 0, n = 0, k = 0, row = 0;
  bool own = false;

  __device__ __forceinline__ PairTiles(const BackwardArguments<T>& args, const RowSpan<T>& span)
      : args(args), span(span), own(args.delta.values == nullptr) {
    next_layer();
  }

  __device__ __forceinline__ bool done() const { return layer > args.net.layers; }

  __device__ __forceinline__ void next_layer() {
    do ++layer;
    while (layer <= args.net.layers && args.places[layer] == args.places[layer + 1]);
  }

  __device__ __forceinline__ void fetch(T* stage) const {
    const Pair<T> pair = own ? own_pair(args, span, layer) : task_pair(args, span, layer);
    const int rows = min(span.rows - row, kStep<T>);
    const int tall = min(args.net.widths[layer] - n, kPairRows), wide = min(args.net.widths[layer - 1] - k, kColumns);
    Part<T>(pair.left.row(row) + n, pair.left.stride, rows, tall).fetch(stage, kPairPitch);
    Part<T>(pair.right.row(row) + k, pair.right.stride, rows, wide).fetch(stage + kStep<T> * kPairPitch, kWidePitch);
  }

  __device__ __forceinline__ void advance() {
    row += kStep<T>;
    if (row < span.rows) return;
    row = 0;
    if (!own && args.x.values != nullptr) {
      own = true;
      return;
    }
    own = args.delta.values == nullptr;
    k += kColumns;
    if (k < args.net.widths[layer - 1]) return;
    k = 0;
    n += kPairRows;
    if (n < args.net.widths[layer]) return;
    n = 0;
    next_layer();
  }
};

// out [N, K] (+)= sums, of one block; added to what is there if `begun`.
__device__ __forceinline__ void add_block(
    float* out, int N, int K, const float (&sums)[2][4], int row, int column, bool begun) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = row + row_of(i), k = column + column_of(half, i);
      if (n >= N || k >= K) continue;
      float* place = out + static_cast<int64_t>(n) * K + k;
      *place = begun ? *place + sums[half][i] : sums[half][i];
    }
  }
}

// delta_l^T h_{l-1} + g_l^T v_{l-1} of all trained layers over a span, into the block's partial gradients.
template <class Math, typename T = typename Math::Value>
__device__ __forceinline__ void multiply_pairs(
    const BackwardArguments<T>& args, const RowSpan<T>& span, float* partials, bool begun) {
  using Mine = Share<kPairRows>;
  const PairTiles<T> tiles(args, span);
  Pipeline<T, PairTiles<T>> pairs(tiles, static_cast<T*>(dynamic_shared()), kPairStage<T>);
  const int chains = (args.delta.values != nullptr) + (args.x.values != nullptr);
  const int steps = chains * ceil_div(span.rows, kStep<T>), per_chain = ceil_div(span.rows, kStep<T>);
#pragma unroll 1
  for (int l = 1; l <= args.net.layers; ++l) {
    if (args.places[l] == args.places[l + 1]) continue;
    const int N = args.net.widths[l], K = args.net.widths[l - 1];
#pragma unroll 1
    for (int first_n = 0; first_n < N; first_n += kPairRows) {
#pragma unroll 1
      for (int first_k = 0; first_k < K; first_k += kColumns) {
        float sums[Mine::kDown][Mine::kAcross][2][4] = {};
        const int left = K - first_k - Mine::column(), count = left > 0 ? ceil_div(left, Mine::kStride) : 0;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          const T* stage = pairs.next();
          const int row = (step < per_chain ? step : step - per_chain) * kStep<T>;
#pragma unroll
          for (int i = 0; i < kStep<T>; i += kBlock) {
            if (row + i >= span.rows || first_n + Mine::row() >= N) break;
            Product<Math, Order::kDepthFirst, Order::kDepthFirst, Mine::kDown, Mine::kAcross>::add(
                sums, stage + i * kPairPitch + Mine::row(), kPairPitch,
                stage + kStep<T> * kPairPitch + i * kWidePitch + Mine::column(), kWidePitch, Mine::kStride, count);
          }
        }
#pragma unroll
        for (int m = 0; m < Mine::kDown; ++m) {
#pragma unroll
          for (int n = 0; n < Mine::kAcross; ++n)
            add_block(
                partials + args.places[l], N, K, sums[m][n], first_n + Mine::row() + m * kBlock,
                first_k + Mine::column() + n * Mine::kStride, begun);
        }
      }
    }
  }
}

template <typename T>
struct ReductionArguments {
  const float* partials = nullptr;  // [blocks, places[layers + 1]]
  int blocks = 0, layers = 0;
  int64_t places[kMostLayers + 2] = {};
  T* gradients[kMostLayers + 1] = {};
};

// The gradients of all layers: the sums of what the blocks found, in their order.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_partials_kernel(const __grid_constant__ ReductionArguments<T> args) {
  const int64_t size = args.places[args.layers + 1], place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= size) return;
  float sum = 0.f;
#pragma unroll 4
  for (int block = 0; block < args.blocks; ++block) sum += args.partials[block * size + place];
  int l = 1;
  while (place >= args.places[l + 1]) ++l;
  args.gradients[l][place - args.places[l]] = narrowed<T>(sum);
}

template <typename T>
void add_partials(const ReductionArguments<T>& args, cudaStream_t stream) {
  XATTR_LAUNCH(add_partials_kernel<T>, blocks_of(args.places[args.layers + 1], kThreads), kThreads, 0, stream, args);
}

}  // namespace xattr::cuda
