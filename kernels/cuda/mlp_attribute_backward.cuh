// mlp_attribute_backward: the tangent and the cotangent sweep of a perceptron and its weight gradients, in one launch.
// Twin of reference/mlp_attribute_backward.py; section 2 of the design.
//
// The first blocks sweep: each takes ROWS rows through all layers, as in mlp_attribute. Values that gradients need go
// to memory, where the second-level cache keeps them for the blocks that follow. Of those each multiplies the pairs of
// one tile of a gradient over one part of the batch (weight_gradients.cuh), as soon as that part has been swept.
#pragma once

#include "cuda/weight_gradients.cuh"

namespace xattr::cuda {

template <typename T>
struct BackwardArguments {
  Network<T> net;
  SharedPlan plan;
  Matrix<const T> x, a, s, c;                  // own chain: [rows, N_0] twice, [rows, 1] twice; x null: it is absent
  Matrix<const T> delta;                       // task's chain: [rows, N_L]; null: it is absent
  T *v_end = nullptr, *delta_end = nullptr;    // [rows, N_L] and [rows, N_0], or null
  const uint32_t* bits[kMostLayers + 1] = {};  // by layer: masks [rows, words_of(N_l)]
  T* v[kMostLayers + 1] = {};  // tangents and cotangents [rows, saved_pitch(N_l)] that are kept, or null
  T* deltas[kMostLayers + 1] = {};
  int64_t rows = 0;
  int up = 0, down = 0;         // layers that the tangents and the cotangents go through
  int sweeps = 0;               // blocks that sweep
  unsigned* tickets = nullptr;  // how many blocks have begun, and for each part how many have swept; zero at first
  PairArguments<T> pairs;
};

// Elements from row to row of values of n columns that are kept, so that rows are aligned to 16 bytes.
__host__ __device__ constexpr int saved_pitch(int n) {
  return round_up(n, 8);
}

// Keeps a tile [valid, n] of rows from `first` on, if it is wanted.
template <typename T>
__device__ __forceinline__ void save_rows(T* to, int64_t first, const T* tile, int pitch, int valid, int n) {
  if (to == nullptr) return;
  constexpr int kPer = 16 / static_cast<int>(sizeof(T));  // both have whole vectors, so that no row leaves a remainder
  const Matrix<T> rows{to, saved_pitch(n)};
  for_each_of_rows(valid, ceil_div(n, kPer), [&](int i, int j) {
    *reinterpret_cast<uint4*>(rows.row(first + i) + j * kPer) =
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

// delta_{l-1} = m_{l-1} * (W_l^T delta_l) for the rows of this block, and what is kept of it.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void sweep_down(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, int64_t first,
    int valid) {
  const Network<T>& net = args.net;
#pragma unroll 1
  for (int l = net.layers; l > net.layers - args.down; --l) {
    const int k = net.widths[l - 1];
    multiply_layer<Math, ROWS, false>(
        weights, shared.values(l), shared.pitch(l), net.widths[l], k,
        [&](const float (&sums)[2][4], int row, int column) {
          store_product(shared, net, l - 1, l > 1, sums, row, column);
        });
    __syncthreads();
    const T* tile = shared.values(l - 1);
    if (l > 1)
      save_rows(args.deltas[l - 1], first, tile, shared.pitch(l - 1), valid, k);
    else if (args.delta_end != nullptr)
      store_rows(args.delta_end + first * k, tile, shared.pitch(0), valid, k);
  }
}

// v_l = m_l * (W_l v_{l-1}) for the rows of this block, and what is kept of it.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void sweep_up(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, int64_t first,
    int valid) {
  const Network<T>& net = args.net;
#pragma unroll 1
  for (int l = 1; l <= args.up; ++l) {
    const int n = net.widths[l];
    multiply_layer<Math, ROWS, true>(
        weights, shared.values(l - 1), shared.pitch(l - 1), net.widths[l - 1], n,
        [&](const float (&sums)[2][4], int row, int column) {
          store_product(shared, net, l, l < net.layers, sums, row, column);
        });
    __syncthreads();
    const T* tile = shared.values(l);
    if (l < net.layers)
      save_rows(args.v[l], first, tile, shared.pitch(l), valid, n);
    else if (args.v_end != nullptr)
      store_rows(args.v_end + first * n, tile, shared.pitch(l), valid, n);
  }
}

// The masks of the block's rows into shared memory, zeros below them.
template <typename T>
__device__ __forceinline__ void fetch_masks(
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, int64_t first, int valid, int rows) {
  for (int l = 1; l < args.net.layers; ++l) {
    const int words = words_of(args.net.widths[l]);
    for (int i = threadIdx.x; i < rows * words; i += kThreads)
      shared.mask(l)[i] = i < valid * words ? args.bits[l][first * words + i] : 0;
  }
}

// Both sweeps of the rows from `first` on.
template <class Math, int ROWS, typename T = typename Math::Value>
__device__ __forceinline__ void sweep_rows(const BackwardArguments<T>& args, int64_t first) {
  const Network<T>& net = args.net;
  const int valid = static_cast<int>(args.rows - first < ROWS ? args.rows - first : ROWS), last = net.layers;
  const SharedTiles<T> shared(args.plan);
  fetch_masks(args, shared, first, valid, ROWS);
  if (args.down > 0) {
    Part<T>(args.delta.row(first), args.delta.stride, valid, net.widths[last], ROWS)
        .fetch(shared.values(last), shared.pitch(last));
    cp_async_commit();
  }
  const WeightTiles<T> tiles{net, Route{args.up, args.down, false}};
  WeightPipeline<T> weights(tiles, shared.stages(), kStageSize<T>);
  sweep_down<Math, ROWS>(args, shared, weights, first, valid);
  if (args.x.values == nullptr) return;
  __syncthreads();  // the last cotangents have left the tile that v_0 takes
  start_tangents(args, shared, first, valid, ROWS);
  __syncthreads();
  save_rows(args.v[0], first, shared.values(0), shared.pitch(0), valid, net.widths[0]);
  sweep_up<Math, ROWS>(args, shared, weights, first, valid);
}

template <class Math, int ROWS, typename T = typename Math::Value>
__global__ void __launch_bounds__(kThreads, 2)
    mlp_attribute_backward_kernel(const __grid_constant__ BackwardArguments<T> args) {
  const PairArguments<T>& pairs = args.pairs;
  unsigned* swept = args.tickets + 1;
  const int ticket = static_cast<int>(count_up(args.tickets));
  if (ticket < args.sweeps) {
    const int64_t first = static_cast<int64_t>(ticket) * ROWS;
    sweep_rows<Math, ROWS>(args, first);
    if (pairs.parts > 0) count_up(swept + first / pairs.part_rows);
    return;
  }
  const int place = ticket - args.sweeps, tiles = pairs.tiles[pairs.layers + 1];
  const GradientTile tile(pairs, place % tiles, place / tiles);
  if (args.sweeps > 0) wait_for(swept + tile.part, ceil_div(tile.rows, ROWS));
  multiply_pairs<Math>(pairs, tile, static_cast<T*>(dynamic_shared()));
}

// Rows of a block that sweeps. Two share a multiprocessor, since the tiles of gradients have the same shared memory.
template <typename T>
int choose_backward_rows(const Device& device, const Network<T>& net, int64_t batch) {
  return choose_rows(device, net, batch, 2, kProgressBytes);
}

// Counters that a launch needs, zero at first: args.tickets, followed by args.pairs.done.
template <typename T>
int64_t counters_of(const PairArguments<T>& pairs) {
  return 1 + pairs.parts + pairs.tiles[pairs.layers + 1];
}

// What is left to fill in: the plan of shared memory, and how many blocks sweep; returns how many blocks there are.
template <typename T>
unsigned planned(int rows, BackwardArguments<T>& args) {
  const bool gradients = args.pairs.parts > 0;
  args.plan = shared_plan(args.net, rows);
  if (gradients && args.plan.bytes < kPairBytes<T>) args.plan.bytes = kPairBytes<T>;
  args.sweeps = args.x.values != nullptr || args.down > 0 ? static_cast<int>(blocks_of(args.rows, rows)) : 0;
  return args.sweeps + (gradients ? args.pairs.tiles[args.pairs.layers + 1] * args.pairs.parts : 0);
}

// `rows`: of a block, from choose_backward_rows. There is at least one row in the batch, and something to do.
template <class Math>
void mlp_attribute_backward(int rows, BackwardArguments<typename Math::Value> args, cudaStream_t stream) {
  for_rows(rows, [&](auto block_rows) {
    auto* kernel = mlp_attribute_backward_kernel<Math, block_rows.value>;
    const unsigned blocks = planned(block_rows.value, args);
    allow_shared_memory(kernel, args.plan.bytes);
    XATTR_LAUNCH(kernel, blocks, kThreads, args.plan.bytes, stream, args);
  });
}

}  // namespace xattr::cuda
