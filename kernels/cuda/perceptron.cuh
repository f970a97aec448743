// What the kernels of a whole perceptron share: the network, the block's shared memory, the walk over the weights, and
// the product of a tile of rows with a layer.
//
// A block takes a tile of rows through all layers. Layers count from 1 and 0 is the input, as in section 2 of the
// design; values of layer l lie in tiles[l % 2], so that a layer reads one of two tiles and writes the other.
#pragma once

#include "cuda/mask.cuh"
#include "cuda/pipeline.cuh"
#include "cuda/rows.cuh"

namespace xattr::cuda {

constexpr int kMostLayers = 16, kWidest = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kColumns = 128;  // of a layer's output that are computed at once

// Elements of the depth that a tile of a weight has: 64 bytes.
template <typename T>
constexpr int kStep = 64 / static_cast<int>(sizeof(T));

// Rows of tiles lie 16 bytes apart, counted in banks of shared memory, so that ldmatrix reads eight without conflict.
template <typename T>
constexpr int kPadding = 16 / static_cast<int>(sizeof(T));

constexpr int kWidePitch = kColumns + 8;  // of tiles [depth, kColumns]: for TF32 four rows lie 8 banks apart

template <typename T>
constexpr int kStageSize =
    kColumns * (kStep<T> + kPadding<T>) > kStep<T>* kWidePitch ? kColumns * (kStep<T> + kPadding<T>)
                                                               : kStep<T> * kWidePitch;

template <typename T>
struct Network {
  int layers = 0;
  int widths[kMostLayers + 1] = {};
  const T* weights[kMostLayers + 1] = {};  // of layer l: [widths[l], widths[l - 1]], contiguous
  float slopes[kMostLayers + 1] = {};      // of hidden layers, as T holds them; 0 for ReLU
};

// Where things lie in the shared memory of a block that takes `rows` rows, in bytes.
struct SharedPlan {
  int rows = 0;
  int pitches[2] = {}, tiles[2] = {};  // elements from row to row
  int masks[kMostLayers + 1] = {};     // of hidden layers, words_of(widths[l]) a row
  int masks_end = 0;
  int stages = 0, bytes = 0;
};

template <typename T>
inline SharedPlan shared_plan(const Network<T>& net, int rows) {
  SharedPlan plan;
  plan.rows = rows;
  for (int parity = 0; parity < 2; ++parity) {
    int widest = 0;
    for (int l = parity; l <= net.layers; l += 2) widest = net.widths[l] > widest ? net.widths[l] : widest;
    plan.pitches[parity] = round_up(widest, kBlock) + kPadding<T>;
    plan.tiles[parity] = plan.bytes;
    plan.bytes += rows * plan.pitches[parity] * static_cast<int>(sizeof(T));
  }
  for (int l = 1; l < net.layers; ++l) {
    plan.masks[l] = plan.bytes;
    plan.bytes += rows * words_of(net.widths[l]) * 4;
  }
  plan.masks_end = plan.bytes;
  plan.stages = round_up(plan.bytes, 16);
  plan.bytes = plan.stages + kStages * kStageSize<T> * static_cast<int>(sizeof(T));
  return plan;
}

// The block's shared memory.
template <typename T>
struct SharedTiles {
  char* memory;
  const SharedPlan& plan;

  __device__ __forceinline__ explicit SharedTiles(const SharedPlan& plan)
      : memory(static_cast<char*>(dynamic_shared())), plan(plan) {}

  __device__ __forceinline__ T* values(int l) const { return reinterpret_cast<T*>(memory + plan.tiles[l % 2]); }
  __device__ __forceinline__ int pitch(int l) const { return plan.pitches[l % 2]; }
  __device__ __forceinline__ uint32_t* mask(int l) const { return reinterpret_cast<uint32_t*>(memory + plan.masks[l]); }
  __device__ __forceinline__ T* stages() const { return reinterpret_cast<T*>(memory + plan.stages); }
};

// The order in which sweeps go through the layers: `up` of them from the first on, `down` from the last.
struct Route {
  int up, down;
  bool up_first;

  __device__ __forceinline__ bool goes_up(int leg) const { return up_first ? leg < up : leg >= down; }
  __device__ __forceinline__ int layer(int leg, int layers) const {
    const int first_legs = up_first ? up : down;
    const int i = leg < first_legs ? leg : leg - first_legs;
    return goes_up(leg) ? i + 1 : layers - i;
  }
};

// The tiles of the weights in the order in which the products of a route need them: for each layer and kColumns of its
// result, all of the depth. Upwards a tile is [kColumns, kStep], columns last in depth; downwards [kStep, kColumns].
template <typename T>
struct WeightTiles {
  const Network<T>& net;
  Route route;
  int leg = 0, column = 0, depth = 0;

  __device__ __forceinline__ bool done() const { return leg == route.up + route.down; }

  __device__ __forceinline__ void fetch(T* tile) const {
    const int l = route.layer(leg, net.layers), n = net.widths[l], k = net.widths[l - 1];
    const bool up = route.goes_up(leg);
    const int row = up ? column : depth, first = up ? depth : column;
    const int rows = min(n - row, up ? kColumns : kStep<T>), columns = min(k - first, up ? kStep<T> : kColumns);
    const T* values = net.weights[l] + static_cast<int64_t>(row) * k + first;
    Part<T>(values, k, rows, columns).fetch(tile, up ? kStep<T> + kPadding<T> : kWidePitch);
  }

  __device__ __forceinline__ void advance() {
    const int l = route.layer(leg, net.layers);
    const bool up = route.goes_up(leg);
    const int columns = net.widths[up ? l : l - 1], whole = net.widths[up ? l - 1 : l];
    depth += kStep<T>;
    if (depth < whole) return;
    depth = 0;
    column += kColumns;
    if (column < columns) return;
    column = 0;
    ++leg;
  }
};

template <typename T>
using WeightPipeline = Pipeline<T, WeightTiles<T>>;

// How the warps share a product [ROWS, kColumns]: each has kDown blocks of rows that follow one another, and kAcross of
// columns, in turn with the other warps, so that narrow layers keep all warps busy.
template <int ROWS>
struct Share {
  static constexpr int kDown = ROWS >= 32 ? 2 : 1;
  static constexpr int kWarpsDown = ROWS / (kDown * kBlock);
  static constexpr int kWarpsAcross = kWarps / kWarpsDown;
  static constexpr int kAcross = kColumns / kBlock / kWarpsAcross;
  static constexpr int kStride = kWarpsAcross * kBlock;

  __device__ __forceinline__ static int row() { return threadIdx.x / 32 / kWarpsAcross * kDown * kBlock; }
  __device__ __forceinline__ static int column() { return threadIdx.x / 32 % kWarpsAcross * kBlock; }
};

// W_l in, or its transpose for a sweep downwards: for every block of the result calls finish(sums, row, column) from
// the warp that has it. `in` has ROWS rows of `depth`; the pipeline stands at this layer.
template <class Math, int ROWS, bool UP, class Finish>
__device__ __forceinline__ void multiply_layer(
    WeightPipeline<typename Math::Value>& weights, const typename Math::Value* in, int pitch, int depth, int columns,
    Finish finish) {
  using T = typename Math::Value;
  using Mine = Share<ROWS>;
  constexpr Order kOrder = UP ? Order::kDepthLast : Order::kDepthFirst;
  constexpr int kPitch = UP ? kStep<T> + kPadding<T> : kWidePitch;
  for (int first = 0; first < columns; first += kColumns) {
    float sums[Mine::kDown][Mine::kAcross][2][4] = {};
    const int left = columns - first - Mine::column();
    const int count = left > 0 ? ceil_div(left, Mine::kStride) : 0;  // blocks of columns that are there
    for (int step = 0; step < depth; step += kStep<T>) {
      const T* tile = weights.next();
#pragma unroll
      for (int k = 0; k < kStep<T>; k += kBlock) {
        if (step + k >= depth) break;
        Product<Math, Order::kDepthLast, kOrder, Mine::kDown, Mine::kAcross>::add(
            sums, in + Mine::row() * pitch + step + k, pitch, tile + place_in<kOrder>(Mine::column(), k, kPitch),
            kPitch, Mine::kStride, count);
      }
    }
#pragma unroll
    for (int m = 0; m < Mine::kDown; ++m) {
#pragma unroll
      for (int n = 0; n < Mine::kAcross; ++n) {
        if (n >= count) break;
        finish(sums[m][n], Mine::row() + m * kBlock, first + Mine::column() + n * Mine::kStride);
      }
    }
  }
}

// Stores value(half, i) for every place of a block that is left of `columns`, and zero elsewhere.
template <typename T, class Value>
__device__ __forceinline__ void store_block(T* tile, int pitch, int row, int column, int columns, Value value) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int there = column + column_of(half, i);
      tile[(row + row_of(i)) * pitch + there] = narrowed<T>(there < columns ? value(half, i) : 0.f);
    }
  }
}

// Sums as a tensor of T holds them, in tile l; with `masked`, times the mask m_l.
template <typename T>
__device__ __forceinline__ void store_product(
    const SharedTiles<T>& shared, const Network<T>& net, int l, bool masked, const float (&sums)[2][4], int row,
    int column) {
  const int n = net.widths[l], words = words_of(n);
  T* tile = shared.values(l);
  if (!masked) {
    store_block(tile, shared.pitch(l), row, column, n, [&](int half, int i) { return sums[half][i]; });
    return;
  }
  const auto* mask = reinterpret_cast<const uint16_t*>(shared.mask(l)) + row * 2 * words + column / kBlock;
  const BlockBits bits(mask, words);
  const float slope = net.slopes[l];
  store_block(tile, shared.pitch(l), row, column, n, [&](int half, int i) {
    return selected<T>(rounded<T>(sums[half][i]), bits(half, i), slope);
  });
}

}  // namespace xattr::cuda
