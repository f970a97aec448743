// mlp_attribute_backward: tangents, cotangents and weight gradients of a perceptron in one launch, and a small one that
// adds up what its blocks found. Twin of reference/mlp_attribute_backward.py; section 2 of the design.
//
// A block takes spans of rows. First it takes their tiles through the sweeps, as mlp_attribute does, and leaves the
// values that gradients need in a scratch of its own, which stays in the second-level cache. Then it multiplies the
// pairs of each trained layer over the whole span, both chains in one accumulation. No atomics: the sums of a block
// are its own, and the blocks' are added in their order.
#pragma once

#include "perceptron.cuh"

namespace xattr {

template <typename T>
struct BackwardArguments {
  Network<T> net;
  SharedPlan plan;
  Matrix<const T> x, a, s, c;                // own chain: [rows, N_0] twice, [rows, 1] twice; x null: it is absent
  Matrix<const T> delta;                     // task's chain: [rows, N_L]; null: it is absent
  T *v_end = nullptr, *delta_end = nullptr;  // [rows, N_L] and [rows, N_0], or null
  const uint32_t* bits[kMostLayers + 1];     // by layer: masks [rows, words_of(N_l)]
  Matrix<const T> g[kMostLayers + 1];        // own cotangents [rows, N_l] of trained layers
  Matrix<const T> h[kMostLayers + 1];        // inputs [rows, N_{l-1}] of trained layers
  T* scratch = nullptr;                      // [blocks, scratch_size]
  int64_t v_places[kMostLayers + 1];         // where in it v_l and delta_l of a span are, or -1
  int64_t delta_places[kMostLayers + 1];
  int64_t scratch_size = 0;
  float* partials = nullptr;        // [blocks, places[layers + 1]]
  int64_t places[kMostLayers + 2];  // where the gradient of layer l begins; empty ones are of layers not trained
  int64_t rows = 0;
  int span_rows = 0;
  int up = 0, down = 0;  // layers that the tangents and the cotangents go through
};

constexpr int kPairRows = 64;  // of a gradient, and kColumns, that are computed at once
constexpr int kPairPitch = kPairRows + 8;

// Elements from row to row of values of n columns in the scratch, so that rows are aligned to 16 bytes.
__host__ __device__ constexpr int scratch_pitch(int n) {
  return round_up(n, 8);
}

template <typename T>
constexpr int kPairStage = kStep<T> * (kPairPitch + kWidePitch);

template <typename T>
inline SharedPlan backward_plan(const Network<T>& net, int rows) {
  const int size = static_cast<int>(sizeof(T));
  return shared_plan(net, rows, kStages * kStageSize<T> * size, kStages * kPairStage<T> * size);
}

// A span of rows, and the block's memory for it.
template <typename T>
struct Span {
  int64_t first;  // its first row in the batch
  int rows;
  T* scratch;

  __device__ __forceinline__ Matrix<T> saved(int64_t place, int n) const {
    return {place < 0 ? nullptr : scratch + place, scratch_pitch(n)};
  }
};

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
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, const Span<T>& span,
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
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, WeightPipeline<T>& weights, const Span<T>& span,
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
    const BackwardArguments<T>& args, const SharedTiles<T>& shared, const Span<T>& span, int row) {
  const Network<T>& net = args.net;
  const int64_t first = span.first + row;
  const int valid = min(span.rows - row, ROWS), last = net.layers;
  __syncthreads();  // the tile before is done with
  for (int l = 1; l < last; ++l) {
    const int words = words_of(net.widths[l]);
    for (int i = threadIdx.x; i < ROWS * words; i += kThreads)
      shared.mask(l)[i] = i < valid * words ? args.bits[l][first * words + i] : 0;
  }
  if (args.delta.values != nullptr) {
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
__device__ __forceinline__ Pair<T> task_pair(const BackwardArguments<T>& args, const Span<T>& span, int l) {
  const bool top = l == args.net.layers;
  return {
      top ? from_row(args.delta, span.first) : readable(span.saved(args.delta_places[l], args.net.widths[l])),
      from_row(args.h[l], span.first)};
}

template <typename T>
__device__ __forceinline__ Pair<T> own_pair(const BackwardArguments<T>& args, const Span<T>& span, int l) {
  return {from_row(args.g[l], span.first), readable(span.saved(args.v_places[l - 1], args.net.widths[l - 1]))};
}

// The tiles of the pairs in the order in which the gradients need them: for each trained layer and [kPairRows,
// kColumns] of its gradient, the rows of the task's chain, then of the own. A stage holds [kStep, kPairRows] of the
// left factor and [kStep, kColumns] of the right one.
template <typename T>
struct PairTiles {
  const BackwardArguments<T>& args;
  const Span<T>& span;
  int layer = 0, n = 0, k = 0, row = 0;
  bool own = false;

  __device__ __forceinline__ PairTiles(const BackwardArguments<T>& args, const Span<T>& span)
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
    const BackwardArguments<T>& args, const Span<T>& span, float* partials, bool begun) {
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
    const Span<T> span{first, static_cast<int>(left < args.span_rows ? left : args.span_rows), scratch};
#pragma unroll 1
    for (int row = 0; row < span.rows; row += ROWS) sweep_rows<Math, ROWS>(args, shared, span, row);
    __syncthreads();  // all of the span is in the scratch, and its memory free
    multiply_pairs<Math>(args, span, partials, i >= gridDim.x);
  }
}

template <typename T>
struct ReductionArguments {
  const float* partials = nullptr;  // [blocks, places[layers + 1]]
  int blocks = 0, layers = 0;
  int64_t places[kMostLayers + 2];
  T* gradients[kMostLayers + 1];
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

}  // namespace xattr
