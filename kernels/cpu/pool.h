// The geometry of pooling, for every operator of the family and both layouts of its tensors.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

namespace xattr {

constexpr int64_t kMaxWindow = 256;  // elements of the largest window: the values of a uint8

static inline int64_t floor_div(int64_t a, int64_t b) {  // for b > 0
  return a / b - (a % b < 0);
}

// One spatial dimension: `in` elements under `out` windows.
struct Axis {
  int64_t in = 1, out = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;

  // Where element k of window o lies in the input; before 0 and from `in` on it is padding.
  int64_t place(int64_t o, int64_t k) const { return o * stride - padding + k * dilation; }
  bool holds(int64_t place) const { return place >= 0 && place < in; }
  // Whether all of window o lies in the input.
  bool holds_window(int64_t o) const { return place(o, 0) >= 0 && place(o, kernel - 1) < in; }
  // The window whose element k lies at `place`, or -1.
  int64_t window(int64_t place, int64_t k) const {
    const int64_t start = place + padding - k * dilation;
    return start >= 0 && start % stride == 0 && start / stride < out ? start / stride : -1;
  }
  // The windows first .. last - 1 whose element k lies in the input.
  int64_t first(int64_t k) const { return std::max<int64_t>(0, -floor_div(place(0, k), stride)); }
  int64_t last(int64_t k) const { return std::min(out, floor_div(in - 1 - place(0, k), stride) + 1); }
};

// How many windows lie along an axis. Twin of pooled_size in reference/max_pool.py.
static inline int64_t pooled_size(const Axis& axis, bool ceil_mode) {
  const int64_t room = axis.in + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1;
  if (!ceil_mode) return floor_div(room, axis.stride) + 1;
  const int64_t count = floor_div(room + axis.stride - 1, axis.stride) + 1;
  return (count - 1) * axis.stride >= axis.in + axis.padding ? count - 1 : count;
}

// Depth, height and width (those that are missing have one element), and the number of channels.
struct Pool {
  Axis depth, height, width;
  int64_t channels = 1;

  int64_t in() const { return depth.in * height.in * width.in; }
  int64_t out() const { return depth.out * height.out * width.out; }
  int64_t window() const { return depth.kernel * height.kernel * width.kernel; }
  int64_t flat(int64_t d, int64_t h, int64_t w) const { return (d * height.in + h) * width.in + w; }

  // body(d, h, k) for every row of elements of the windows (od, oh) that lies in the input: the row (d, h) of the
  // input, and the index in the window of its first element.
  template <typename Body>
  void for_rows(int64_t od, int64_t oh, Body body) const {
    for (int64_t kd = 0; kd < depth.kernel; ++kd) {
      const int64_t d = depth.place(od, kd);
      if (!depth.holds(d)) continue;
      for (int64_t kh = 0; kh < height.kernel; ++kh) {
        const int64_t h = height.place(oh, kh);
        if (height.holds(h)) body(d, h, (kd * height.kernel + kh) * width.kernel);
      }
    }
  }
};

// From an index in a window to where it lies in the input: -1 in the padding and beyond the window.
class Places {
 public:
  explicit Places(const Pool& pool) : pool_(pool) {
    for (int64_t k = 0; k < kMaxWindow; ++k) {
      const bool within = k < pool.window();
      const int64_t kw = k % pool.width.kernel, kh = k / pool.width.kernel % pool.height.kernel,
                    kd = k / pool.width.kernel / pool.height.kernel;
      depth_[k] = kd * pool.depth.dilation;
      height_[k] = kh * pool.height.dilation;
      width_[k] = kw * pool.width.dilation;
      flat_[k] = within ? pool.flat(depth_[k], height_[k], width_[k]) : kNowhere;
    }
  }

  // body(ow, place) for the windows ow of the row (od, oh); place(k) is where element k of the window lies.
  template <typename Body>
  void for_windows(int64_t od, int64_t oh, Body body) const {
    const int64_t d = pool_.depth.place(od, 0), h = pool_.height.place(oh, 0);
    const bool inside = pool_.depth.holds_window(od) && pool_.height.holds_window(oh);
    for (int64_t ow = 0; ow < pool_.width.out; ++ow) {
      const int64_t w = pool_.width.place(ow, 0), first = pool_.flat(d, h, w);
      if (inside && pool_.width.holds_window(ow)) {
        body(ow, [&](uint8_t k) { return first + flat_[k]; });
      } else {
        body(ow, [&](uint8_t k) {
          const bool holds = flat_[k] != kNowhere && pool_.depth.holds(d + depth_[k]) &&
                             pool_.height.holds(h + height_[k]) && pool_.width.holds(w + width_[k]);
          return holds ? first + flat_[k] : kNowhere;
        });
      }
    }
  }

 private:
  static constexpr int64_t kNowhere = std::numeric_limits<int64_t>::min() / 2;
  Pool pool_;
  std::array<int64_t, kMaxWindow> depth_, height_, width_, flat_;
};

}  // namespace xattr
