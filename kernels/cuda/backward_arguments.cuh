// What the kernels of mlp_attribute_backward are given, and how a batch is shared among their blocks.
#pragma once

#include "cuda/perceptron_launch.cuh"

namespace xattr::cuda {

template <typename T>
struct BackwardArguments {
  Network<T> net;
  SharedPlan plan;
  Matrix<const T> x, a, s, c;                  // own chain: [rows, N_0] twice, [rows, 1] twice; x null: it is absent
  Matrix<const T> delta;                       // task's chain: [rows, N_L]; null: it is absent
  T *v_end = nullptr, *delta_end = nullptr;    // [rows, N_L] and [rows, N_0], or null
  const uint32_t* bits[kMostLayers + 1] = {};  // by layer: masks [rows, words_of(N_l)]
  Matrix<const T> g[kMostLayers + 1] = {};     // own cotangents [rows, N_l] of trained layers
  Matrix<const T> h[kMostLayers + 1] = {};     // inputs [rows, N_{l-1}] of trained layers
  T* scratch = nullptr;                        // [blocks, scratch_size]
  int64_t v_places[kMostLayers + 1] = {};      // where in it v_l and delta_l of a span are, or -1
  int64_t delta_places[kMostLayers + 1] = {};
  int64_t scratch_size = 0;
  float* partials = nullptr;             // [blocks, places[layers + 1]]
  int64_t places[kMostLayers + 2] = {};  // where the gradient of layer l begins; empty ones are of layers not trained
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

// How a batch is shared: rows of a tile and of a span, and blocks.
struct BackwardShape {
  int rows = 0, span_rows = 0, blocks = 0;  // zero where the network is not served
};

constexpr int kLongestSpan = 512;  // rows, which bounds the scratch

// Every block writes gradients of its own, which are read again; that takes about as long as a row or two of the batch.
// So for B rows no more than about sqrt(B) blocks pay, each with sqrt(B) rows or more (docs/kernels.md).
template <typename T>
BackwardShape backward_shape(const Device& device, const Network<T>& net, int64_t batch) {
  BackwardShape shape;
  int64_t span = batch > 0 ? (batch + device.processors - 1) / device.processors : 1;
  while (span * span < batch) ++span;
  span = span < kLongestSpan ? span : kLongestSpan;
  const int64_t blocks = (batch + span - 1) / span;
  const Device filled{device.capability, static_cast<int>(blocks < device.processors ? blocks : device.processors)};
  shape.rows = choose_rows(filled, batch, [&](int rows) { return backward_plan(net, rows).bytes; });
  if (shape.rows == 0) return shape;
  shape.span_rows = round_up(static_cast<int>(span), shape.rows);
  const int64_t spans = (batch + shape.span_rows - 1) / shape.span_rows;
  shape.blocks = static_cast<int>(spans < device.processors ? spans : device.processors);
  return shape;
}

// Where in a block's scratch the values of a span are that the gradients of trained layers need.
template <typename T>
void place_scratch(BackwardArguments<T>& args) {
  int64_t size = 0;
  const auto take = [&](int n) {
    const int64_t place = size;
    size += int64_t{args.span_rows} * scratch_pitch(n);
    return place;
  };
  for (int l = 0; l <= args.net.layers; ++l) args.v_places[l] = args.delta_places[l] = -1;
  for (int l = 1; l <= args.net.layers; ++l) {
    if (args.places[l] == args.places[l + 1]) continue;
    if (args.x.values != nullptr) args.v_places[l - 1] = take(args.net.widths[l - 1]);
    if (args.delta.values != nullptr && l < args.net.layers) args.delta_places[l] = take(args.net.widths[l]);
  }
  args.scratch_size = size;
}

// A span of rows, and the block's memory for it.
template <typename T>
struct RowSpan {
  int64_t first;  // its first row in the batch
  int rows;
  T* scratch;

  __device__ __forceinline__ Matrix<T> saved(int64_t place, int n) const {
    return {place < 0 ? nullptr : scratch + place, scratch_pitch(n)};
  }
};

}  // namespace xattr::cuda
