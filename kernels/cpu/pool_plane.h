// An image of one channel in a frame of padding that all its windows lie in, so that no place needs a check.
#pragma once

#include <array>

#include "lanes.h"
#include "pool.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

class PoolPlane {
 public:
  explicit PoolPlane(const Pool& pool)
      : pool_(pool),
        height_(span_of(pool.height)),
        width_(span_of(pool.width)),
        size_(span_of(pool.depth) * height_ * width_) {
    for (int64_t k = 0; k < kMaxWindow; ++k) {
      const int64_t kw = k % pool.width.kernel, kh = k / pool.width.kernel % pool.height.kernel,
                    kd = k / pool.width.kernel / pool.height.kernel;
      places_[k] = kd < pool.depth.kernel
                       ? flat(kd * pool.depth.dilation, kh * pool.height.dilation, kw * pool.width.dilation)
                       : size_;
    }
  }

  // Elements of the frame.
  int64_t size() const { return size_; }
  // The same, and as many behind it, where an index beyond the window leads.
  int64_t room() const { return 2 * size_; }

  // body(framed, start, count) for every run of `count` elements of the input: where it starts in the frame and in
  // the input.
  template <typename Body>
  void for_runs(const Body& body) const {
    const bool whole = width_ == pool_.width.in;  // rows follow each other in the frame, too
    const int64_t runs = whole ? 1 : pool_.height.in, count = pool_.height.in / runs * pool_.width.in;
    int64_t start = 0;
    for (int64_t d = 0; d < pool_.depth.in; ++d) {
      for (int64_t h = 0; h < runs; ++h, start += count) {
        body(flat(d + pool_.depth.padding, h + pool_.height.padding, pool_.width.padding), start, count);
      }
    }
  }

  // body(o, place) for every window o: the place in the frame that idx[o] names.
  template <typename Body>
  void for_windows(const uint8_t* idx, const Body& body) const {
    int64_t o = 0;
    for (int64_t od = 0; od < pool_.depth.out; ++od) {
      for (int64_t oh = 0; oh < pool_.height.out; ++oh) {
        int64_t first = flat(od * pool_.depth.stride, oh * pool_.height.stride, 0);
        for (const int64_t end = o + pool_.width.out; o < end; ++o, first += pool_.width.stride) {
          body(o, first + places_[idx[o]]);
        }
      }
    }
  }

 private:
  int64_t flat(int64_t d, int64_t h, int64_t w) const { return (d * height_ + h) * width_ + w; }

  Pool pool_;
  int64_t height_, width_, size_;
  std::array<int64_t, kMaxWindow> places_;
};

}  // namespace CPU_CAPABILITY
}  // namespace xattr
