// pool_pull: the transpose of max_pool. Twin of reference/pool_pull.py.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "pool.h"

namespace xattr {

// Sums are taken in fp32 at least.
template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// One contiguous channel: adds every element of g to sum, pool.in() elements, where idx says.
template <typename T>
void pool_pull_channel(const T* g, const uint8_t* idx, const Pool& pool, const Places& places, SumOf<T>* sum) {
  std::fill_n(sum, pool.in(), SumOf<T>(0));
  for (int64_t od = 0; od < pool.depth.out; ++od) {
    for (int64_t oh = 0; oh < pool.height.out; ++oh) {
      const int64_t row = (od * pool.height.out + oh) * pool.width.out;
      places.for_windows(od, oh, [&](int64_t ow, auto place) {
        const int64_t at = place(idx[row + ow]);
        if (at >= 0) sum[at] += static_cast<SumOf<T>>(g[row + ow]);
      });
    }
  }
}

// sum[i] += g[i] where idx[i] is k.
template <typename T>
void add_where(
    const T* __restrict g, const uint8_t* __restrict idx, uint8_t k, int64_t count, SumOf<T>* __restrict sum) {
  for (int64_t i = 0; i < count; ++i) {
    const SumOf<T> value = static_cast<SumOf<T>>(g[i]);
    sum[i] += idx[i] == k ? value : SumOf<T>(0);
  }
}

// Channels last: the row (d, h) of the input's cotangent, from all windows of the image that reach it. sum: of
// pool.channels elements.
template <typename T>
void pool_pull_row_channels_last(
    const T* g, const uint8_t* idx, const Pool& pool, int64_t d, int64_t h, std::vector<SumOf<T>>& sum, T* row) {
  const int64_t n = pool.channels;
  const auto for_windows = [](const Axis& axis, int64_t place, auto body) {
    for (int64_t k = 0; k < axis.kernel; ++k) {
      if (const int64_t o = axis.window(place, k); o >= 0) body(o, k);
    }
  };
  for (int64_t w = 0; w < pool.width.in; ++w) {
    std::fill(sum.begin(), sum.end(), SumOf<T>(0));
    for_windows(pool.depth, d, [&](int64_t od, int64_t kd) {
      for_windows(pool.height, h, [&](int64_t oh, int64_t kh) {
        for_windows(pool.width, w, [&](int64_t ow, int64_t kw) {
          const int64_t at = ((od * pool.height.out + oh) * pool.width.out + ow) * n;
          const int64_t k = (kd * pool.height.kernel + kh) * pool.width.kernel + kw;
          add_where(g + at, idx + at, static_cast<uint8_t>(k), n, sum.data());
        });
      });
    });
    for (int64_t c = 0; c < n; ++c) row[w * n + c] = static_cast<T>(sum[c]);
  }
}

}  // namespace xattr
