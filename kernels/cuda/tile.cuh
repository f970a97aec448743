// Products of tiles in shared memory by the tensor cores, or exactly in fp32.
//
// All is made of blocks of 16 x 16: a warp multiplies a block [16 rows, 16 deep] with one [16 columns, 16 deep] and
// holds the sums in accumulators float[2][4]: with g = lane / 4 and q = lane % 4, sum [half][i] is that of row
// g + 8 * (i / 2) and column 8 * half + 2 * q + i % 2.
#pragma once

#include "cuda/instructions.cuh"
#include "cuda/numbers.cuh"

namespace xattr::cuda {

constexpr int kBlock = 16;

// How products are computed, of which values.
struct Fp32 {
  using Value = float;  // exact products
};
struct Tf32 {
  using Value = float;  // factors rounded to 11 bits
};
struct Fp16 {
  using Value = __half;
};
struct Bf16 {
  using Value = __nv_bfloat16;
};

// How a factor lies in memory: the direction that is summed over last, as in [rows, depth], or first.
enum class Order { kDepthLast, kDepthFirst };

// Where the value `outer`, `depth` of a factor is.
template <Order ORDER>
__device__ __forceinline__ int place_in(int outer, int depth, int pitch) {
  return ORDER == Order::kDepthLast ? outer * pitch + depth : depth * pitch + outer;
}

__device__ __forceinline__ int lane() {
  return threadIdx.x % 32;
}

// Of accumulators: the row and the column, within its block, of sum [half][i] of this lane.
__device__ __forceinline__ int row_of(int i) {
  return lane() / 4 + i / 2 * 8;
}

__device__ __forceinline__ int column_of(int half, int i) {
  return half * 8 + lane() % 4 * 2 + i % 2;
}

// A block of a factor as its lanes hold it. words[o][d]: outer half o, and the half d of the depth, or of TF32 its
// quarter d.
template <class Math>
struct Fragment {
  uint32_t words[2][2];

  template <Order ORDER, typename T>
  __device__ __forceinline__ void load(const T* block, int pitch) {
    uint32_t found[4];
    const int matrix = lane() / 8, row = lane() % 8;  // of matrix [matrix / 2][matrix % 2]
    if constexpr (ORDER == Order::kDepthLast)
      ldmatrix_x4(found, block + (matrix / 2 * 8 + row) * pitch + matrix % 2 * 8);
    else
      ldmatrix_x4_transposed(found, block + (matrix % 2 * 8 + row) * pitch + matrix / 2 * 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i / 2][i % 2] = found[i];
  }
};

template <>
struct Fragment<Tf32> {
  uint32_t words[2][4];

  template <Order ORDER>
  __device__ __forceinline__ void load(const float* block, int pitch) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t (&found)[4] = words[half];
      if constexpr (ORDER == Order::kDepthLast) {  // a row of 16 bytes holds 4 values
        ldmatrix_x4(found, block + (half * 8 + lane() % 8) * pitch + lane() / 8 * 4);
      } else {
#pragma unroll
        for (int d = 0; d < 4; ++d)
          found[d] = __float_as_uint(block[(d * 4 + lane() % 4) * pitch + half * 8 + lane() / 4]);
      }
#pragma unroll
      for (int d = 0; d < 4; ++d) found[d] = round_to_tf32(__uint_as_float(found[d]));
    }
  }
};

// d += a b.
template <class Math>
__device__ __forceinline__ void multiply_blocks(float (&d)[2][4], const Fragment<Math>& a, const Fragment<Math>& b) {
  constexpr const typename Math::Value* kType = nullptr;
  const uint32_t left[4] = {a.words[0][0], a.words[1][0], a.words[0][1], a.words[1][1]};
#pragma unroll
  for (int half = 0; half < 2; ++half) mma(d[half], left, b.words[half], kType);
}

__device__ __forceinline__ void multiply_blocks(float (&d)[2][4], const Fragment<Tf32>& a, const Fragment<Tf32>& b) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    const uint32_t left[4] = {a.words[0][k], a.words[1][k], a.words[0][k + 1], a.words[1][k + 1]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t right[2] = {b.words[half][k], b.words[half][k + 1]};
      mma_tf32(d[half], left, right);
    }
  }
}

// d += a b over 16 of the depth, for M blocks of rows that follow one another and N blocks of columns that lie `stride`
// apart, of which the first `count` are there.
template <class Math, Order A, Order B, int M, int N>
struct Product {
  using T = typename Math::Value;

  __device__ __forceinline__ static void add(
      float (&d)[M][N][2][4], const T* a, int a_pitch, const T* b, int b_pitch, int stride, int count) {
    Fragment<Math> left[M];
#pragma unroll
    for (int m = 0; m < M; ++m) left[m].template load<A>(a + place_in<A>(m * kBlock, 0, a_pitch), a_pitch);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n >= count) break;
      Fragment<Math> right;
      right.template load<B>(b + place_in<B>(n * stride, 0, b_pitch), b_pitch);
#pragma unroll
      for (int m = 0; m < M; ++m) multiply_blocks(d[m][n], left[m], right);
    }
  }
};

// The exact products of fp32 have no error but that of their sum, which one long chain of additions would let grow
// beyond PyTorch's; so every 16 are summed apart.
template <Order A, Order B, int M, int N>
struct Product<Fp32, A, B, M, N> {
  __device__ __forceinline__ static void add(
      float (&d)[M][N][2][4], const float* a, int a_pitch, const float* b, int b_pitch, int stride, int count) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      if (n >= count) break;
      float sums[M][2][4] = {};
#pragma unroll 4
      for (int k = 0; k < kBlock; ++k) {
        float right[2][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          right[half][0] = b[place_in<B>(n * stride + column_of(half, 0), k, b_pitch)];
          right[half][1] = b[place_in<B>(n * stride + column_of(half, 1), k, b_pitch)];
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
          const float left[2] = {
              a[place_in<A>(m * kBlock + row_of(0), k, a_pitch)], a[place_in<A>(m * kBlock + row_of(2), k, a_pitch)]};
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][half][i] = fmaf(left[i / 2], right[half][i % 2], sums[m][half][i]);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) d[m][n][half][i] += sums[m][half][i];
        }
      }
    }
  }
};

}  // namespace xattr::cuda
