// max_pool: the maximum of each window and where in it it lies. Twin of reference/max_pool.py.
#pragma once

#include <limits>

#include "lanes.h"
#include "pool_rows.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

constexpr int64_t kBlock = 1024;  // windows and channels at a time, whose running maxima stay in the L1 cache

// A running maximum for each lane, a lane being one channel of one window. Indices are as wide as values, so that
// vectors hold as many of them.
template <typename T>
class Maxima {
 public:
  using Value = Compute<T>;
  using Index = std::conditional_t<std::is_same_v<T, double>, int64_t, int32_t>;

  explicit Maxima(int64_t count)
      : values_(lanes<Value>(count)), indices_(lanes<Index>(count)), wide_(lanes<Value>(count)) {}

  // Starts the windows begin .. end: nothing is above minus infinity at the first element in the input.
  void start(const Pool& pool, int64_t begin, int64_t end) {
    const int64_t n = pool.channels;
    std::fill_n(values_.get(), (end - begin) * n, -std::numeric_limits<Value>::infinity());
    for_window_rows(pool, begin, end, [&](const WindowRow& row) {
      const int64_t k = index_of(pool, first_element(pool.depth, row.od), first_element(pool.height, row.oh), 0);
      Index* at = indices_.get() + row.lane * n;
      std::fill_n(at, row.count * n, static_cast<Index>(k));
      for (int64_t i = 0; i < row.count && place_of(pool.width, row.ow + i, 0) < 0; ++i) {
        std::fill_n(at + i * n, n, static_cast<Index>(k + first_element(pool.width, row.ow + i)));
      }
    });
  }

  // Offers x, element k of their windows, to `count` lanes from `lane` on. A NaN wins, as in PyTorch.
  void offer(const T* x, int64_t lane, int64_t count, int64_t k) {
    const Value* __restrict from = widen(x, count, wide_.get());
    Value* __restrict values = values_.get() + lane;
    Index* __restrict indices = indices_.get() + lane;
    const Index index = static_cast<Index>(k);
    for (int64_t i = 0; i < count; ++i) {
      const bool wins = (from[i] > values[i]) | (from[i] != from[i]);
      values[i] = wins ? from[i] : values[i];
      indices[i] = wins ? index : indices[i];
    }
  }

  void store(int64_t count, T* out, uint8_t* __restrict idx) const {
    narrow(values_.get(), count, out);
    const Index* __restrict indices = indices_.get();
    for (int64_t i = 0; i < count; ++i) idx[i] = static_cast<uint8_t>(indices[i]);
  }

 private:
  std::unique_ptr<Value[]> values_;
  std::unique_ptr<Index[]> indices_;
  std::unique_ptr<Value[]> wide_;
};

// Every `step`-th element of x, `count` of them, to out.
template <typename T>
void pick(const T* __restrict x, int64_t step, int64_t count, T* __restrict out) {
  if (step == 2) {  // a step that is known becomes shuffles
    for (int64_t i = 0; i < count; ++i) out[i] = x[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = x[step * i];
  }
}

// Offers element (kd, kh, kw) of the windows begin .. end to `best`; x: room for one element of each.
template <typename T>
void offer_elements(
    const T* h, const Pool& pool, int64_t kd, int64_t kh, int64_t kw, int64_t begin, int64_t end, T* x,
    Maxima<T>& best) {
  const int64_t n = pool.channels, step = pool.width.stride, k = index_of(pool, kd, kh, kw);
  if (n > 1) {
    for_element_rows(pool, kd, kh, kw, begin, end, [&](int64_t lane, int64_t place, int64_t count) {
      for (int64_t i = 0; i < count; ++i) best.offer(h + (place + i * step) * n, (lane + i) * n, n, k);
    });
  } else {  // rows of windows may be short: many of them together fill vectors
    std::fill_n(x, end - begin, -std::numeric_limits<T>::infinity());
    for_element_rows(pool, kd, kh, kw, begin, end, [&](int64_t lane, int64_t place, int64_t count) {
      pick(h + place, step, count, x + lane);
    });
    best.offer(x, 0, end - begin, k);
  }
}

// The windows begin .. end of all images. h: [images, D, H, W, channels]; out, idx: one for each window and channel.
template <typename T>
void max_pool(const T* h, const Pool& pool, int64_t begin, int64_t end, T* out, uint8_t* idx) {
  const int64_t n = pool.channels, block = std::max<int64_t>(1, kBlock / n);
  Maxima<T> best(block * n);
  const auto x = lanes<T>(block);
  for (int64_t i = begin; i < end; i += block) {
    const int64_t stop = std::min(i + block, end);
    best.start(pool, i, stop);
    for (int64_t kd = 0; kd < pool.depth.kernel; ++kd) {
      for (int64_t kh = 0; kh < pool.height.kernel; ++kh) {
        for (int64_t kw = 0; kw < pool.width.kernel; ++kw) {
          offer_elements(h, pool, kd, kh, kw, i, stop, x.get(), best);
        }
      }
    }
    best.store((stop - i) * n, out + i * n, idx + i * n);
  }
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
