// The sums of partial weight gradients, which weight_gradients.cuh has left of every part of a batch.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/perceptron.cuh"

namespace xattr::cuda {

template <typename T>
struct ReductionArguments {
  const float* partials = nullptr;  // [parts, places[layers + 1]]
  int parts = 0, layers = 0;
  int64_t places[kMostLayers + 2] = {};  // where the gradient of layer l begins; empty ones are of layers not trained
  T* gradients[kMostLayers + 1] = {};    // by layer: [N_l, N_{l-1}]
};

// The gradients of all layers: the sums of what the parts have, in their order.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_partials_kernel(const __grid_constant__ ReductionArguments<T> args) {
  const int64_t size = args.places[args.layers + 1], place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= size) return;
  float sum = 0.f;
#pragma unroll 4
  for (int part = 0; part < args.parts; ++part) sum += args.partials[part * size + place];
  int l = 1;
  while (place >= args.places[l + 1]) ++l;
  args.gradients[l][place - args.places[l]] = narrowed<T>(sum);
}

template <typename T>
void add_partials(const ReductionArguments<T>& args, cudaStream_t stream) {
  XATTR_LAUNCH(add_partials_kernel<T>, blocks_of(args.places[args.layers + 1], kThreads), kThreads, 0, stream, args);
}

}  // namespace xattr::cuda
