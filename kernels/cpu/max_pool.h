// max_pool: the maximum of each window and where in it it lies. Twin of reference/max_pool.py.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "pool.h"

namespace xattr {

// A running maximum for each of many windows, in the compute type, with indices as wide so that vectors hold both.
template <typename T>
class Maxima {
 public:
  using Value = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using Index = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

  explicit Maxima(int64_t count) : values_(count), indices_(count) {}

  void clear() {
    std::fill(values_.begin(), values_.end(), -std::numeric_limits<Value>::infinity());
    std::fill(indices_.begin(), indices_.end(), Index{-1});
  }

  // Offers x[i * step], element k of window first + i, for i < count. A NaN wins, as in PyTorch.
  template <typename Step>
  void offer(const T* __restrict x, Step step, int64_t first, int64_t count, int64_t k) {
    Value* __restrict values = values_.data() + first;
    Index* __restrict indices = indices_.data() + first;
    const Index index = static_cast<Index>(k);
    for (int64_t i = 0; i < count; ++i) {
      const Value value = static_cast<Value>(x[i * step]);
      const bool wins = (value > values[i]) | (value != value) | (indices[i] < 0);
      values[i] = wins ? value : values[i];
      indices[i] = wins ? index : indices[i];
    }
  }

  void store(T* out, uint8_t* idx) const {
    for (size_t i = 0; i < values_.size(); ++i) out[i] = static_cast<T>(values_[i]);
    for (size_t i = 0; i < values_.size(); ++i) idx[i] = static_cast<uint8_t>(indices_[i]);
  }

 private:
  std::vector<Value> values_;
  std::vector<Index> indices_;
};

template <int64_t n>
using Constant = std::integral_constant<int64_t, n>;

// The row (od, oh) of windows over one contiguous channel h; out, idx: that row. best: of pool.width.out windows.
template <typename T>
void max_pool_row(const T* h, const Pool& pool, int64_t od, int64_t oh, Maxima<T>& best, T* out, uint8_t* idx) {
  const Axis& width = pool.width;
  best.clear();
  pool.for_rows(od, oh, [&](int64_t d, int64_t row, int64_t k) {
    for (int64_t kw = 0; kw < width.kernel; ++kw) {
      const int64_t first = width.first(kw), count = width.last(kw) - first;
      if (count <= 0) continue;
      const T* x = h + pool.flat(d, row, width.place(first, kw));
      if (width.stride == 1) {
        best.offer(x, Constant<1>(), first, count, k + kw);
      } else if (width.stride == 2) {
        best.offer(x, Constant<2>(), first, count, k + kw);
      } else {
        best.offer(x, width.stride, first, count, k + kw);
      }
    }
  });
  best.store(out, idx);
}

// The same for all channels of an image h with channels last. best: of pool.channels windows.
template <typename T>
void max_pool_row_channels_last(
    const T* h, const Pool& pool, int64_t od, int64_t oh, Maxima<T>& best, T* out, uint8_t* idx) {
  for (int64_t ow = 0; ow < pool.width.out; ++ow) {
    best.clear();
    pool.for_rows(od, oh, [&](int64_t d, int64_t row, int64_t k) {
      for (int64_t kw = 0; kw < pool.width.kernel; ++kw) {
        const int64_t w = pool.width.place(ow, kw);
        if (!pool.width.holds(w)) continue;
        best.offer(h + pool.flat(d, row, w) * pool.channels, Constant<1>(), 0, pool.channels, k + kw);
      }
    });
    best.store(out + ow * pool.channels, idx + ow * pool.channels);
  }
}

}  // namespace xattr
