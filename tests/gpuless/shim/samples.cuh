// Small kernels on which the shim itself is tested: the start of a driver's text, from which tests take lines.
#include "cuda/instructions.cuh"

// y = max(x, 0), where it is positive, and its sum, of n values.
__global__ void relu_pack_sum(const float* x, float* y, uint32_t* bits, float* total, int n) {
  __shared__ float parts[32];
  const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float value = i < n ? fmaxf(x[i], 0.f) : 0.f;
  const unsigned word = __ballot_sync(0xffffffffu, value > 0.f);
  if (i < n) y[i] = value;
  if (lane == 0 && i < n) bits[i / 32] = word;
  float sum = value;
  for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by);
  if (lane == 0) parts[warp] = sum;
  __syncthreads();  // parts
  if (warp > 0) return;
  sum = lane < static_cast<int>(blockDim.x / 32) ? parts[lane] : 0.f;
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, by);
  if (lane == 0) atomicAdd(total, sum);
}

// y = x w^T for x [16, k] and w [8, k], k a multiple of 16, by one warp; `other` warps do the same into their own y.
__global__ void small_product(const __half* x, const __half* w, float* y, int k) {
  constexpr int kPitch = 24;
  auto* stages = static_cast<__half*>(xattr::cuda::dynamic_shared());  // [2][32][kPitch]: rows of x, then of w
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto fetch = [&](int stage, int first) {
    for (int i = threadIdx.x; i < 64; i += blockDim.x) {
      const int row = i / 2, column = i % 2 * 8;
      const __half* source = row < 16 ? x + row * k : row < 24 ? w + (row - 16) * k : x;
      xattr::cuda::cp_async<16>(
          stages + (stage * 32 + row) * kPitch + column, source + first + column, row < 24 ? 16 : 0);
    }
    xattr::cuda::cp_async_commit();
  };
  float d[4] = {};
  fetch(0, 0);
  for (int first = 0; first < k; first += 16) {
    const int stage = first / 16 % 2;
    xattr::cuda::cp_async_wait<0>();  // stage
    __syncthreads();                  // arrived
    if (first + 16 < k) fetch(1 - stage, first + 16);
    const __half* tile = stages + stage * 32 * kPitch;
    uint32_t a[4], both[4];
    xattr::cuda::ldmatrix_x4(a, tile + lane % 16 * kPitch + lane / 16 * 8);
    xattr::cuda::ldmatrix_x4(both, tile + (16 + lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8);
    xattr::cuda::mma(d, a, {both[0], both[1]}, static_cast<const __half*>(nullptr));
  }
  float* own = y + warp * 16 * 8;
  for (int i = 0; i < 4; ++i) own[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// Wrong on purpose: a barrier that a part of the block never reaches.
__global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 7)
    __syncthreads();
  else
    __syncwarp();
  y[threadIdx.x] = 1.f;
}
