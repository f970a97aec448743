// Packed masks of a tile in shared memory, in the layout of reference/bits.py: words_of(N) words a row. A block of
// 16 x 16 holds half a word of each of its rows.
#pragma once

#include "cuda/tile.cuh"

namespace xattr::cuda {

__host__ __device__ constexpr int words_of(int elements) {
  return ceil_div(elements, 32);
}

// Bit i of `bits`, for i < 4 and 8 <= i < 12, at place 2 i.
__device__ __forceinline__ unsigned spread(unsigned bits) {
  bits = (bits | bits << 2) & 0x3333u;
  return (bits | bits << 1) & 0x5555u;
}

// Packs what is positive of a block, each lane with its accumulators', by ballots: bit 4 g + q of one is that of row g
// (or g + 8) and column 2 q (or 2 q + 1). mask: the half word of the block's first row; words: of a row.
__device__ __forceinline__ void store_bits(uint16_t* mask, int words, const bool (&positive)[2][4]) {
  unsigned found[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) found[half][i] = __ballot_sync(0xffffffffu, positive[half][i]);
  }
  if (lane() >= kBlock) return;
  const int shift = lane() % 8 * 4;  // this lane packs row `lane`
  const auto nibbles = [&](int i) {
    const unsigned low = lane() < 8 ? found[0][i] : found[0][i + 2], high = lane() < 8 ? found[1][i] : found[1][i + 2];
    return (low >> shift & 15u) | (high >> shift & 15u) << 8;
  };
  mask[lane() * 2 * words] = static_cast<uint16_t>(spread(nibbles(0)) | spread(nibbles(1)) << 1);
}

// The bits of a block that belong to the accumulators of a lane.
struct BlockBits {
  unsigned rows[2];  // g and g + 8

  __device__ __forceinline__ BlockBits(const uint16_t* mask, int words)
      : rows{mask[row_of(0) * 2 * words], mask[row_of(2) * 2 * words]} {}

  __device__ __forceinline__ bool operator()(int half, int i) const { return rows[i / 2] >> column_of(half, i) & 1u; }
};

// A slope of zero is that of ReLU, which passes nothing on, be it infinite; NaN follows PyTorch.
__device__ __forceinline__ bool is_positive(float z, float slope) {
  return slope == 0.f ? !(z <= 0.f) : z > 0.f;
}

// value where its bit is set, slope * value elsewhere, as a tensor of T would hold it.
template <typename T>
__device__ __forceinline__ float selected(float value, bool positive, float slope) {
  return positive ? value : slope == 0.f ? 0.f : rounded<T>(slope * value);
}

}  // namespace xattr::cuda
