// pool_push: the tangent map of max_pool. Twin of reference/pool_push.py.
#pragma once

#include "pool_plane.h"
#include "pool_rows.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// The images begin .. end of one channel each: the element of v that idx names for every window.
template <typename T>
void pool_push_planes(const T* v, const uint8_t* idx, const Pool& pool, int64_t begin, int64_t end, T* out) {
  const PoolPlane plane(pool);
  const int64_t windows = windows_of(pool), elements = elements_of(pool);
  const auto framed = lanes<T>(plane.room());
  std::fill_n(framed.get(), plane.room(), T(0));
  for (int64_t i = begin; i < end; ++i) {
    plane.for_runs([&](int64_t to, int64_t start, int64_t count) {
      std::copy_n(v + i * elements + start, count, framed.get() + to);
    });
    T* taken = out + i * windows;
    plane.for_windows(idx + i * windows, [&](int64_t o, int64_t place) { taken[o] = framed[place]; });
  }
}

// starts[k]: where element k of window `ow` of a row starts among the channels of all elements, or -1 in the padding.
static inline void find_elements(const Pool& pool, const WindowRow& row, int64_t ow, int64_t* starts) {
  for (int64_t kd = 0; kd < pool.depth.kernel; ++kd) {
    const int64_t d = place_of(pool.depth, row.od, kd);
    for (int64_t kh = 0; kh < pool.height.kernel; ++kh) {
      const int64_t h = place_of(pool.height, row.oh, kh), start = row_start(pool, row.image, d, h);
      const bool held = holds(pool.depth, d) && holds(pool.height, h);
      for (int64_t kw = 0; kw < pool.width.kernel; ++kw) {
        const int64_t w = place_of(pool.width, ow, kw);
        *starts++ = held && holds(pool.width, w) ? (start + w) * pool.channels : -1;
      }
    }
  }
}

// Channels last: the windows begin .. end of all images.
template <typename T>
void pool_push_windows(const T* v, const uint8_t* idx, const Pool& pool, int64_t begin, int64_t end, T* out) {
  const int64_t n = pool.channels;
  std::array<int64_t, kMaxWindow> starts;
  starts.fill(-1);
  for_window_rows(pool, begin, end, [&](const WindowRow& row) {
    for (int64_t i = 0; i < row.count; ++i) {
      find_elements(pool, row, row.ow + i, starts.data());
      const int64_t at = (begin + row.lane + i) * n;
      for (int64_t c = 0; c < n; ++c) {
        const int64_t start = starts[idx[at + c]];
        out[at + c] = start < 0 ? T(0) : v[start + c];
      }
    }
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
