// Rows of a matrix between global and shared memory, by all threads of a block.
//
// How many bytes move at once is what the addresses allow: rows of 118 bf16 lie 236 bytes apart, so 4. A thread takes a
// vector of a row, and as many threads a row as the next power of two, so that nothing is divided.
#pragma once

#include "cuda/instructions.cuh"
#include "cuda/numbers.cuh"

namespace xattr::cuda {

constexpr int kThreads = 256;

// Bytes, 16 at most, to which all rows are aligned.
__device__ __forceinline__ int alignment(const void* rows, int64_t stride_bytes) {
  const unsigned bits = static_cast<unsigned>(reinterpret_cast<uintptr_t>(rows) | stride_bytes) | 16u;
  return static_cast<int>(bits & (0u - bits));
}

// Calls body(row, i) for all i < count of all rows, from the threads of the block.
template <class Body>
__device__ __forceinline__ void for_each_of_rows(int rows, int count, Body body) {
  const int shift = count > 1 ? 32 - __clz(count - 1) : 0, total = rows << shift;
  for (int place = threadIdx.x; place < total; place += kThreads) {
    const int row = place >> shift, i = place & ((1 << shift) - 1);
    if (i < count) body(row, i);
  }
}

// A matrix in global memory. stride: elements from row to row.
template <typename T>
struct Matrix {
  T* values = nullptr;
  int64_t stride = 0;

  __device__ __forceinline__ T* row(int64_t i) const { return values + i * stride; }
};

// A part [rows, columns] of a matrix, which fills a tile [tall, wide] with zeros around it.
template <typename T>
struct Part {
  const T* values;
  int64_t stride;
  int rows, columns, tall, wide;

  // wide in whole blocks of 16, tall in such of `unit`.
  __device__ __forceinline__ Part(const T* values, int64_t stride, int rows, int columns, int unit = 16)
      : values(values),
        stride(stride),
        rows(rows),
        columns(columns),
        tall(round_up(rows, unit)),
        wide(round_up(columns, 16)) {}

  template <int BYTES>
  __device__ __forceinline__ void fetch_vectors(T* tile, int pitch) const {
    constexpr int kPer = BYTES / static_cast<int>(sizeof(T));
    for_each_of_rows(tall, wide / kPer, [&](int row, int i) {
      const int column = i * kPer, left = row < rows ? min(columns - column, kPer) : 0;
      const T* source = left > 0 ? values + row * stride + column : values;
      cp_async<BYTES>(tile + row * pitch + column, source, max(left, 0) * static_cast<int>(sizeof(T)));
    });
  }

  // Into shared memory, in a group of asynchronous copies that the caller commits.
  __device__ __forceinline__ void fetch(T* tile, int pitch) const {
    const int bytes = alignment(values, stride * static_cast<int64_t>(sizeof(T)));
    if (bytes == 16) {
      fetch_vectors<16>(tile, pitch);
    } else if (bytes == 8) {
      fetch_vectors<8>(tile, pitch);
    } else if (bytes >= 4) {
      fetch_vectors<4>(tile, pitch);
    } else {  // two-byte values in rows of odd length
      for_each_of_rows(tall, wide, [&](int row, int column) {
        const bool there = row < rows && column < columns;
        tile[row * pitch + column] = there ? values[row * stride + column] : narrowed<T>(0.f);
      });
    }
  }
};

template <typename Vector, typename T>
__device__ __forceinline__ void store_vectors(T* out, const T* tile, int pitch, int rows, int columns) {
  constexpr int kPer = static_cast<int>(sizeof(Vector) / sizeof(T));
  for_each_of_rows(rows, columns / kPer, [&](int row, int i) {
    *reinterpret_cast<Vector*>(out + static_cast<int64_t>(row) * columns + i * kPer) =
        *reinterpret_cast<const Vector*>(tile + row * pitch + i * kPer);
  });
}

// Writes the first [rows, columns] of a tile to a contiguous matrix.
template <typename T>
__device__ __forceinline__ void store_rows(T* out, const T* tile, int pitch, int rows, int columns) {
  const int bytes = alignment(out, columns * static_cast<int64_t>(sizeof(T)));
  if (bytes == 16)
    store_vectors<uint4>(out, tile, pitch, rows, columns);
  else if (bytes == 8)
    store_vectors<uint2>(out, tile, pitch, rows, columns);
  else if (bytes >= 4)
    store_vectors<uint32_t>(out, tile, pitch, rows, columns);
  else
    store_vectors<T>(out, tile, pitch, rows, columns);
}

}  // namespace xattr::cuda
