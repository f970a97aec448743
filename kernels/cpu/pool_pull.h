// pool_pull: the transpose of max_pool. Twin of reference/pool_pull.py.
#pragma once

#include "pool_plane.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// The images begin .. end of one channel each: every element of g is added where idx says. Small images are summed
// several at a time, so that the stores into a sum have long ended when vectors of it are read.
template <typename T>
void pool_pull_planes(const T* g, const uint8_t* idx, const Pool& pool, int64_t begin, int64_t end, T* out) {
  constexpr int64_t block_elements = 1024;
  const PoolPlane plane(pool);
  const int64_t windows = windows_of(pool), elements = elements_of(pool);
  const int64_t block = std::max<int64_t>(1, block_elements / plane.size());
  const auto sums = lanes<Compute<T>>(block * plane.room() + kWordBits), buffer = lanes<Compute<T>>(windows);
  for (int64_t i = begin; i < end; i += block) {
    const int64_t stop = std::min(i + block, end);
    Compute<T>* sum = sums.get();
    for (int64_t j = i; j < stop; ++j, sum += plane.room()) {
      const Compute<T>* from = widen(g + j * windows, windows, buffer.get());
      std::fill_n(sum, plane.size(), Compute<T>(0));
      plane.for_windows(idx + j * windows, [&](int64_t o, int64_t place) { sum[place] += from[o]; });
    }
    sum = sums.get();
    for (int64_t j = i; j < stop; ++j, sum += plane.room()) {
      plane.for_runs([&](int64_t framed, int64_t start, int64_t count) {
        narrow(sum + framed, count, out + j * elements + start);
      });
    }
  }
}

// sum[i] += g[i] where idx[i] is k.
template <typename C>
void add_where(const C* __restrict g, const uint8_t* __restrict idx, uint8_t k, int64_t count, C* __restrict sum) {
  for (int64_t i = 0; i < count; ++i) {
    const C value = g[i];  // read in any case: vectors then need no masked loads
    sum[i] += idx[i] == k ? value : C(0);
  }
}

// body(o, k) for each window o that has an element k at `place`.
template <typename Body>
void for_windows_at(const Axis& axis, int64_t place, const Body& body) {
  for (int64_t k = 0; k < axis.kernel; ++k) {
    if (const int64_t o = window_of(axis, place, k); o >= 0) body(o, k);
  }
}

// Channels last: the rows begin .. end of the inputs of all images, each from the rows of windows that reach it.
template <typename T>
void pool_pull_rows(const T* g, const uint8_t* idx, const Pool& pool, int64_t begin, int64_t end, T* out) {
  const Axis& width = pool.width;
  const int64_t n = pool.channels, row = width.in * n, windows = width.out * n;
  const auto sum = lanes<Compute<T>>(row), buffer = lanes<Compute<T>>(windows);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t plane = i / pool.height.in, image = plane / pool.depth.in;
    std::fill_n(sum.get(), row, Compute<T>(0));
    for_windows_at(pool.depth, plane % pool.depth.in, [&](int64_t od, int64_t kd) {
      for_windows_at(pool.height, i % pool.height.in, [&](int64_t oh, int64_t kh) {
        const int64_t start = ((image * pool.depth.out + od) * pool.height.out + oh) * windows;
        const Compute<T>* from = widen(g + start, windows, buffer.get());
        for (int64_t kw = 0; kw < width.kernel; ++kw) {
          const auto k = static_cast<uint8_t>(index_of(pool, kd, kh, kw));
          for (int64_t ow = first_window(width, kw); ow < last_window(width, kw); ++ow) {
            add_where(from + ow * n, idx + start + ow * n, k, n, sum.get() + place_of(width, ow, kw) * n);
          }
        }
      });
    });
    narrow(sum.get(), row, out + i * row);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
