// pool_push: the tangent map of max_pool. Twin of reference/pool_push.py.
#pragma once

#include <array>

#include "pool.h"

namespace xattr {

// The row (od, oh) of windows over one contiguous channel v; idx, out: that row.
template <typename T>
void pool_push_row(const T* v, const uint8_t* idx, const Places& places, int64_t od, int64_t oh, T* out) {
  places.for_windows(od, oh, [&](int64_t ow, auto place) {
    const int64_t at = place(idx[ow]);
    out[ow] = at >= 0 ? v[at] : T(0);
  });
}

// The same for all channels of an image v with channels last.
template <typename T>
void pool_push_row_channels_last(
    const T* v, const uint8_t* idx, const Pool& pool, const Places& places, int64_t od, int64_t oh, T* out) {
  const int64_t n = pool.channels, window = pool.window();
  std::array<int64_t, kMaxWindow> offsets;
  offsets.fill(-1);
  places.for_windows(od, oh, [&](int64_t ow, auto place) {
    for (int64_t k = 0; k < window; ++k) {
      const int64_t at = place(static_cast<uint8_t>(k));
      offsets[k] = at < 0 ? -1 : at * n;
    }
    for (int64_t i = ow * n; i < (ow + 1) * n; ++i) {
      const int64_t offset = offsets[idx[i]];
      out[i] = offset >= 0 ? v[offset + i - ow * n] : T(0);
    }
  });
}

}  // namespace xattr
