// Weight gradients of a perceptron from the pairs of all its trained layers: delta_l^T h_{l-1} + g_l^T v_{l-1}, both
// chains in one accumulation.
//
// A block has one tile of one layer's gradient, over one part of the batch. So the tiles of all layers share the
// multiprocessors, however few one of them has, and a batch is cut into no more parts than keep them busy. A part's
// sums are its own; the block that is the last at its tile adds them up in their order: no float atomics, the same bits
// every time.
#pragma once

#include "cuda/perceptron.cuh"
#include "cuda/perceptron_launch.cuh"
#include "cuda/progress.cuh"

namespace xattr::cuda {

// The left and the right factor of a layer's gradient, of one chain: cotangents [rows, N_l] at its output, tangents
// [rows, N_{l-1}] at its input.
template <typename T>
struct Pair {
  Matrix<const T> left, right;
};

template <typename T>
struct PairArguments {
  int layers = 0;
  int widths[kMostLayers + 1] = {};
  Pair<T> task[kMostLayers + 1] = {}, own[kMostLayers + 1] = {};  // by layer; a chain that is absent is null
  int tiles[kMostLayers + 2] = {};                                // where those of layer l begin, all counted through
  int64_t places[kMostLayers + 2] = {};                           // where the gradient of layer l begins in a part's
  T* gradients[kMostLayers + 1] = {};                             // by layer: [N_l, N_{l-1}]
  float* partials = nullptr;                                      // [parts, places[layers + 1]] if there are several
  unsigned* done = nullptr;                                       // [tiles], zero at first: parts of a tile that are
  int64_t rows = 0;
  int parts = 0, part_rows = 0;
};

constexpr int kPairRows = 64;  // of a gradient, and kColumns, that a block computes
constexpr int kPairPitch = kPairRows + 8;

template <typename T>
constexpr int kPairStage = kStep<T> * (kPairPitch + kWidePitch);

inline int tiles_of(int N, int K) {
  return ceil_div(N, kPairRows) * ceil_div(K, kColumns);
}

// How a batch is cut.
struct Parts {
  int rows = 0, count = 0;
};

constexpr int kPartRows = 128;              // at least, so that a part's sums are few beside what they sum
constexpr int64_t kMostPartRows = 1 << 30;  // which an int counts

// As many parts as give each multiprocessor two blocks, if each has enough rows. There is a row, and a tile.
inline Parts parts_of(const Device& device, int tiles, int64_t rows) {
  const int64_t busy = (2 * device.processors + tiles - 1) / tiles, most = (rows + kPartRows - 1) / kPartRows;
  const int64_t least = (rows + kMostPartRows - 1) / kMostPartRows;
  int64_t count = busy < most ? busy : most;
  count = count > least ? count : least;
  const int part = round_up(static_cast<int>((rows + count - 1) / count), kPartRows / 2);
  return {part, static_cast<int>((rows + part - 1) / part)};
}

// A tile of a layer's gradient: rows from n and columns from k on, over `rows` rows of the batch from `first` on.
// number: of the tile, among those of all layers.
struct GradientTile {
  int number, part, layer, n, k, rows;
  int64_t first;

  template <typename T>
  __device__ __forceinline__ GradientTile(const PairArguments<T>& args, int number, int part)
      : number(number), part(part), layer(1), first(static_cast<int64_t>(part) * args.part_rows) {
    while (number >= args.tiles[layer + 1]) ++layer;
    const int across = ceil_div(args.widths[layer - 1], kColumns), place = number - args.tiles[layer];
    n = place / across * kPairRows;
    k = place % across * kColumns;
    const int64_t left = args.rows - first;
    rows = left < args.part_rows ? static_cast<int>(left) : args.part_rows;
  }
};

// The steps of a tile: the rows of the task's chain, then of the own. A stage holds [kStep, kPairRows] of the left
// factor and [kStep, kColumns] of the right one.
template <typename T>
struct PairTiles {
  const PairArguments<T>& args;
  const GradientTile& tile;
  int row = 0;
  bool own;

  __device__ __forceinline__ PairTiles(const PairArguments<T>& args, const GradientTile& tile)
      : args(args), tile(tile), own(args.task[tile.layer].left.values == nullptr) {}

  __device__ __forceinline__ int chains() const {
    return (args.task[tile.layer].left.values != nullptr) + (args.own[tile.layer].left.values != nullptr);
  }
  __device__ __forceinline__ bool done() const { return row >= tile.rows; }

  __device__ __forceinline__ void fetch(T* stage) const {
    const Pair<T> pair = own ? args.own[tile.layer] : args.task[tile.layer];
    const int count = min(tile.rows - row, kStep<T>);
    const int tall = min(args.widths[tile.layer] - tile.n, kPairRows);
    const int wide = min(args.widths[tile.layer - 1] - tile.k, kColumns);
    Part<T>(pair.left.row(tile.first + row) + tile.n, pair.left.stride, count, tall).fetch(stage, kPairPitch);
    Part<T>(pair.right.row(tile.first + row) + tile.k, pair.right.stride, count, wide)
        .fetch(stage + kStep<T> * kPairPitch, kWidePitch);
  }

  __device__ __forceinline__ void advance() {
    row += kStep<T>;
    if (row < tile.rows || own || args.own[tile.layer].left.values == nullptr) return;
    own = true;
    row = 0;
  }
};

// Calls store(n, k, sum) for what the thread has of a block of sums [N, K].
template <class Store>
__device__ __forceinline__ void for_each_sum(
    int N, int K, const float (&sums)[2][4], int row, int column, Store store) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = row + row_of(i), k = column + column_of(half, i);
      if (n < N && k < K) store(n, k, sums[half][i]);
    }
  }
}

// The gradient of a tile: the sums of what its parts have, in their order. They are there.
template <typename T>
__device__ __forceinline__ void add_parts(const PairArguments<T>& args, const GradientTile& tile) {
  const int N = args.widths[tile.layer], K = args.widths[tile.layer - 1];
  const int64_t size = args.places[args.layers + 1];
  const int64_t corner = static_cast<int64_t>(tile.n) * K + tile.k;
  const float* partials = args.partials + args.places[tile.layer] + corner;
  T* gradient = args.gradients[tile.layer] + corner;
  for_each_of_rows(min(N - tile.n, kPairRows), min(K - tile.k, kColumns), [&](int n, int k) {
    float sum = 0.f;
#pragma unroll 4
    for (int part = 0; part < args.parts; ++part) sum += partials[part * size + n * K + k];
    gradient[n * K + k] = narrowed<T>(sum);
  });
}

// One tile, whose pairs are there. It takes kPairBytes of shared memory from `stages` on.
template <class Math, typename T = typename Math::Value>
__device__ __forceinline__ void multiply_pairs(const PairArguments<T>& args, const GradientTile& tile, T* stages) {
  using Mine = Share<kPairRows>;
  const int N = args.widths[tile.layer], K = args.widths[tile.layer - 1];
  const PairTiles<T> steps(args, tile);
  const int per_chain = ceil_div(tile.rows, kStep<T>), count_steps = steps.chains() * per_chain;
  Pipeline<T, PairTiles<T>> pairs(steps, stages, kPairStage<T>);
  float sums[Mine::kDown][Mine::kAcross][2][4] = {};
  const int left = K - tile.k - Mine::column(), count = left > 0 ? ceil_div(left, Mine::kStride) : 0;
#pragma unroll 1
  for (int step = 0; step < count_steps; ++step) {
    const T* stage = pairs.next();
    const int row = (step < per_chain ? step : step - per_chain) * kStep<T>;
#pragma unroll
    for (int i = 0; i < kStep<T>; i += kBlock) {
      if (row + i >= tile.rows || tile.n + Mine::row() >= N) break;
      Product<Math, Order::kDepthFirst, Order::kDepthFirst, Mine::kDown, Mine::kAcross>::add(
          sums, stage + i * kPairPitch + Mine::row(), kPairPitch,
          stage + kStep<T> * kPairPitch + i * kWidePitch + Mine::column(), kWidePitch, Mine::kStride, count);
    }
  }
  float* partial = args.partials + tile.part * args.places[args.layers + 1] + args.places[tile.layer];
#pragma unroll
  for (int m = 0; m < Mine::kDown; ++m) {
#pragma unroll
    for (int n = 0; n < Mine::kAcross; ++n) {
      const int row = tile.n + Mine::row() + m * kBlock, column = tile.k + Mine::column() + n * Mine::kStride;
      for_each_sum(N, K, sums[m][n], row, column, [&](int n, int k, float sum) {
        const int64_t place = static_cast<int64_t>(n) * K + k;
        if (args.parts > 1)
          partial[place] = sum;
        else
          args.gradients[tile.layer][place] = narrowed<T>(sum);
      });
    }
  }
  if (args.parts == 1) return;
  const unsigned before = count_up(args.done + tile.number);
  if (before + 1 == static_cast<unsigned>(args.parts)) add_parts(args, tile);
}

template <typename T>
constexpr int kPairBytes = kStages * kPairStage<T> * static_cast<int>(sizeof(T));

}  // namespace xattr::cuda
