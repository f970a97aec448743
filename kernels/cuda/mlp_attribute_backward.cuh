// mlp_attribute_backward: tangents, cotangents and weight gradients of a perceptron in one launch, and a small one that
// adds up what its blocks found. Twin of reference/mlp_attribute_backward.py; section 2 of the design.
//
// A block takes spans of rows. First it takes their tiles through the sweeps, as mlp_attribute does, and leaves the
// values that gradients need in a scratch of its own. Then it multiplies the pairs of each trained layer over the whole
// span, both chains in one accumulation. No atomics: the sums of a block are its own, and the blocks' are added in
// their order.
#pragma once

#include "cuda/weight_gradients.cuh"

namespace xattr::cuda {

// Keeps a tile [valid, n] that starts at `row` of the span, if it is wanted.
template <typename T>
__device__ __forceinline__ void save_rows(const Matrix<T>& to, int row, const T* tile, int pitch, int valid, int n) {
  if (to.values == nullptr) return;
  constexpr int kPer = 16 / static_cast<int>(sizeof(T));  // both have whole vectors, so that no row leaves a remainder
  for_each_of_rows(valid, ceil_div(n, kPer), [&](int i, int j) {
    *reinterpret_cast<uint4*>(to.row(row + i) + j * kPer) =
        *reinterpret_cast<const uint4*>(tile + i * pitch + j * kPer);
  });
}

// v_0 = (c a + s) x into tile 0; an absent c is one, an absent a or s zero. It ends in zeros, as tiles do.
template <typename T>
__device__ __forceinline__ void start_tangents(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, int64_t first, int valid, int rows) {
  const int n = args.net.widths[0];
  for_each_of_rows(rows, round_up(n, kBlock), [&](int row, int column) {
    float v = 0.f;
    if (row < valid && column < n) {
      if (args.a.values != nullptr) v = widened(args.a.row(first + row)[column]);
      if (args.a.values != nullptr && args.c.values != nullptr) v *= widened(*args.c.row(first + row));
      if (args.s.values != nullptr) v += widened(*args.s.row(first + row));
      v *= widened(args.x.row(first + row)[column]);
    }
    shared.values(0)[row * shared.pitch(0) + column] = narrowed<T>(v);
  });
}

// delta_{l-1} = m_{l-1} * (W_l^T delta_l) for a tile of rows, and what is kept of it.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void sweep_down(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, const RowSpan<T>& span,
    int row, int valid) {
  const Network<T>& net = args.net;
#pragma unroll 1
  for (int l = net.layers; l > net.layers - args.down; --l) {
    const int k = net.widths[l - 1];
    multiply_layer<Math, ROWS, false>(
        weights, shared.values(l), shared.pitch(l), net.widths[l], k,
        [&](const float (&sums)[2][4], int tile_row, int column) {
          store_product(shared, net, l - 1, l > 1, sums, tile_row, column);
        });
    __syncthreads();
    const T* tile = shared.values(l - 1);
    if (l > 1)
      save_rows(span.saved(args.delta_places[l - 1], k), row, tile, shared.pitch(l - 1), valid, k);
    else if (args.delta_end != nullptr)
      store_rows(args.delta_end + (span.first + row) * k, tile, shared.pitch(0), valid, k);
  }
}

// v_l = m_l * (W_l v_{l-1}) for a tile of rows, and what is kept of it.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void sweep_up(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, const RowSpan<T>& span,
    int row, int valid) {
  const Network<T>& net = args.net;
#pragma unroll 1
  for (int l = 1; l <= args.up; ++l) {
    const int n = net.widths[l];
    multiply_layer<Math, ROWS, true>(
        weights, shared.values(l - 1), shared.pitch(l - 1), net.widths[l - 1], n,
        [&](const float (&sums)[2][4], int tile_row, int column) {
          store_product(shared, net, l, l < net.layers, sums, tile_row, column);
        });
    __syncthreads();
    const T* tile = shared.values(l);
    if (l < net.layers)
      save_rows(span.saved(args.v_places[l], n), row, tile, shared.pitch(l), valid, n);
    else if (args.v_end != nullptr)
      store_rows(args.v_end + (span.first + row) * n, tile, shared.pitch(l), valid, n);
  }
}

// Both sweeps for one tile of a span, the rows from `row` on.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void sweep_rows(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, const RowSpan<T>& span, int row) {
  const Network<T>& net = args.net;
  const int64_t first = span.first + row;
  const int valid = min(span.rows - row, ROWS), last = net.layers;
  __syncthreads();  // the tile before is done with
  for (int l = 1; l < last; ++l) {
    const int words = words_of(net.widths[l]);
    for (int i = threadIdx.x; i < ROWS * words; i += kThreads)
      shared.mask(l)[i] = i < valid * words ? args.bits[l][first * words + i] : 0;
  }
  if (args.down > 0) {
    Part<T>(args.delta.row(first), args.delta.stride, valid, net.widths[last], ROWS)
        .fetch(shared.values(last), shared.pitch(last));
    cp_async_commit();
  }
  const WeightTiles<T> tiles{net, Route{args.up, args.down, false}};
  WeightPipeline<T> weights(tiles, shared.stages(), kStageSize<T>);
  sweep_down<Math, ROWS>(args, shared, weights, span, row, valid);
  if (args.x.values == nullptr) return;
  __syncthreads();  // the last cotangents have left the tile that v_0 takes
  start_tangents(args, shared, first, valid, ROWS);
  __syncthreads();
  save_rows(span.saved(args.v_places[0], net.widths[0]), row, shared.values(0), shared.pitch(0), valid, net.widths[0]);
  sweep_up<Math, ROWS>(args, shared, weights, span, row, valid);
}

template <class Math, int ROWS, typename T = typename Math::Value>
__global__ void __launch_bounds__(kThreads, 1)
    mlp_attribute_backward_kernel(const __grid_constant__ BackwardArguments<T> args) {
  const SharedTiles<T> shared(args.plan);
  const int64_t spans = (args.rows + args.span_rows - 1) / args.span_rows;
  T* scratch = args.scratch + blockIdx.x * args.scratch_size;
  float* partials = args.partials + blockIdx.x * args.places[args.net.layers + 1];
#pragma unroll 1
  for (int64_t i = blockIdx.x; i < spans; i += gridDim.x) {
    const int64_t first = i * args.span_rows, left = args.rows - first;
    const RowSpan<T> span{first, static_cast<int>(left < args.span_rows ? left : args.span_rows), scratch};
#pragma unroll 1
    for (int row = 0; row < span.rows; row += ROWS) sweep_rows<Math, ROWS>(args, shared, span, row);
    __syncthreads();  // all of the span is in the scratch, and its memory free
    multiply_pairs<Math>(args, span, partials, i >= gridDim.x);
  }
}

// There is at least one row in the batch; all but the plan and the rows of a span is filled in.
template <class Math>
void mlp_attribute_backward(
    const BackwardShape& shape, BackwardArguments<typename Math::Value> args, cudaStream_t stream) {
  for_rows(shape.rows, [&](auto block_rows) {
    auto* kernel = mlp_attribute_backward_kernel<Math, block_rows.value>;
    args.plan = backward_plan(args.net, block_rows.value);
    args.span_rows = shape.span_rows;
    allow_shared_memory(kernel, args.plan.bytes);
    XATTR_LAUNCH(kernel, shape.blocks, kThreads, args.plan.bytes, stream, args);
  });
}

}  // namespace xattr::cuda
