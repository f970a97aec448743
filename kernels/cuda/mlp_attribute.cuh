// mlp_attribute: the forward and the attribution sweep of a perceptron in one launch. Twin of
// reference/mlp_attribute.py; section 2 of the design.
//
// A block takes ROWS rows up through all layers and down again. Their values and masks never leave shared memory but
// for what the caller keeps; the weights stream through it in tiles, of both sweeps in one pipeline.
#pragma once

#include "cuda/perceptron_launch.cuh"

namespace xattr::cuda {

template <typename T>
struct AttributeArguments {
  Network<T> net;
  SharedPlan plan;
  Matrix<const T> x, u;                  // [rows, N_0], [rows, N_L]
  T *y = nullptr, *a = nullptr;          // likewise
  uint32_t* bits[kMostLayers + 1] = {};  // by layer: masks [rows, words_of(N_l)]
  T* h[kMostLayers + 1] = {};            // values [rows, N_l] that are kept, or null
  T* g[kMostLayers + 1] = {};            // cotangents [rows, N_l], likewise
  int64_t rows = 0;
};

// The activation of sums z: h_l and m_l into the tile and the mask of layer l.
template <typename T>
__device__ __forceinline__ void activate_block(
    const SharedTiles<T>& shared, const Network<T>& net, int l, const float (&z)[2][4], int row, int column) {
  const int n = net.widths[l], words = words_of(n);
  const float slope = net.slopes[l];
  bool positive[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      positive[half][i] = column + column_of(half, i) < n && is_positive(rounded<T>(z[half][i]), slope);
  }
  store_bits(reinterpret_cast<uint16_t*>(shared.mask(l)) + row * 2 * words + column / kBlock, words, positive);
  store_block(shared.values(l), shared.pitch(l), row, column, n, [&](int half, int i) {
    return selected<T>(rounded<T>(z[half][i]), positive[half][i], slope);
  });
}

// h_l = m_l * (W_l h_{l-1}) for the rows of this block; h_0 is on its way to its tile.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void forward_rows(
    const AttributeArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, int64_t first,
    int valid) {
  const Network<T>& net = args.net;
#pragma unroll 1
  for (int l = 1; l <= net.layers; ++l) {
    const int n = net.widths[l], words = words_of(n);
    multiply_layer<Math, ROWS, true>(
        weights, shared.values(l - 1), shared.pitch(l - 1), net.widths[l - 1], n,
        [&](const float (&z)[2][4], int row, int column) {
          if (l < net.layers)
            activate_block(shared, net, l, z, row, column);
          else
            store_product(shared, net, l, false, z, row, column);
        });
    __syncthreads();
    T* kept = l < net.layers ? args.h[l] : args.y;
    if (kept != nullptr) store_rows(kept + first * n, shared.values(l), shared.pitch(l), valid, n);
    if (l < net.layers) {
      for (int i = threadIdx.x; i < valid * words; i += kThreads) args.bits[l][first * words + i] = shared.mask(l)[i];
    }
  }
}

// g_{l-1} = m_{l-1} * (W_l^T g_l), from g_L = u on.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void attribute_rows(
    const AttributeArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, int64_t first,
    int valid) {
  const Network<T>& net = args.net;
  __syncthreads();  // y has left the tile that u takes
  Part<T>(args.u.row(first), args.u.stride, valid, net.widths[net.layers], ROWS)
      .fetch(shared.values(net.layers), shared.pitch(net.layers));
  cp_async_commit();
  cp_async_wait<0>();
#pragma unroll 1
  for (int l = net.layers; l >= 1; --l) {
    const int k = net.widths[l - 1];
    multiply_layer<Math, ROWS, false>(
        weights, shared.values(l), shared.pitch(l), net.widths[l], k,
        [&](const float (&g)[2][4], int row, int column) { store_product(shared, net, l - 1, l > 1, g, row, column); });
    __syncthreads();
    T* kept = args.g[l - 1];
    if (kept != nullptr) store_rows(kept + first * k, shared.values(l - 1), shared.pitch(l - 1), valid, k);
  }
}

// A = x * g_0.
template <typename T>
__device__ __forceinline__ void store_attribution(
    const AttributeArguments<T>& args, const SharedTiles<T>& shared, int64_t first, int valid) {
  const int n = args.net.widths[0], pitch = shared.pitch(0);
  const T* g = shared.values(0);
  for_each_of_rows(valid, n, [&](int row, int column) {
    const float x = widened(args.x.row(first + row)[column]);
    args.a[(first + row) * n + column] = narrowed<T>(x * widened(g[row * pitch + column]));
  });
}

template <class Math, int ROWS, typename T = typename Math::Value>
__global__ void __launch_bounds__(kThreads, 2)
    mlp_attribute_kernel(const __grid_constant__ AttributeArguments<T> args) {
  const Network<T>& net = args.net;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * ROWS;
  const int valid = static_cast<int>(args.rows - first < ROWS ? args.rows - first : ROWS);
  const SharedTiles<T> shared(args.plan);
  if (net.layers > 1) {  // the half words that no block of 16 columns fills
    const int words = (args.plan.masks_end - args.plan.masks[1]) / 4;
    for (int i = threadIdx.x; i < words; i += kThreads) shared.mask(1)[i] = 0;
  }
  Part<T>(args.x.row(first), args.x.stride, valid, net.widths[0], ROWS).fetch(shared.values(0), shared.pitch(0));
  cp_async_commit();
  const WeightTiles<T> tiles{net, Route{net.layers, net.layers, true}};
  WeightPipeline<T> weights(tiles, shared.stages(), kStageSize<T>);
  forward_rows<Math, ROWS>(args, shared, weights, first, valid);
  attribute_rows<Math, ROWS>(args, shared, weights, first, valid);
  store_attribution(args, shared, first, valid);
}

// `rows`: of a block, from choose_rows. There is at least one row in the batch; all but the plan is filled in.
template <class Math>
void mlp_attribute(int rows, AttributeArguments<typename Math::Value> args, cudaStream_t stream) {
  for_rows(rows, [&](auto block_rows) {
    auto* kernel = mlp_attribute_kernel<Math, block_rows.value>;
    args.plan = shared_plan(args.net, block_rows.value);
    allow_shared_memory(kernel, args.plan.bytes);
    XATTR_LAUNCH(kernel, blocks_of(args.rows, rows), kThreads, args.plan.bytes, stream, args);
  });
}

}  // namespace xattr::cuda
