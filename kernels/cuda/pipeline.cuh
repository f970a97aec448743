// Tiles on their way to shared memory while others are multiplied.
#pragma once

#include "cuda/instructions.cuh"

namespace xattr::cuda {

constexpr int kStages = 3;  // tiles in shared memory: one that is multiplied, the others on their way

// Tiles: a walk over tiles with done(), advance() and fetch(T*), which starts the copies of the tile it stands at.
template <typename T, class Tiles>
struct Pipeline {
  Tiles tiles;
  T* stages;
  int stage_size;  // elements
  int due = 0;

  __device__ __forceinline__ Pipeline(const Tiles& tiles, T* stages, int stage_size)
      : tiles(tiles), stages(stages), stage_size(stage_size) {
#pragma unroll 1
    for (int stage = 0; stage < kStages - 1; ++stage) fill(stage);
  }

  __device__ __forceinline__ void fill(int stage) {
    if (!tiles.done()) {
      tiles.fetch(stages + stage * stage_size);
      tiles.advance();
    }
    cp_async_commit();  // an empty group too, so that counting groups counts tiles
  }

  // The next tile. It stays until the next call, which is also a barrier: what the block has written to shared memory
  // before is seen by all after it.
  __device__ __forceinline__ const T* next() {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const T* tile = stages + due * stage_size;
    fill(due == 0 ? kStages - 1 : due - 1);
    due = due == kStages - 1 ? 0 : due + 1;
    return tile;
  }
};

}  // namespace xattr::cuda
