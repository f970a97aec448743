// The geometry of pooling, for every operator of the family and both layouts of its tensors.
//
// Functions are static, so that every instruction set keeps a copy of its own.
#pragma once

#include <algorithm>
#include <cstdint>

namespace xattr {

constexpr int64_t kMaxWindow = 256;  // elements of the largest window: the values of a uint8

// One spatial dimension: `in` elements under `out` windows.
struct Axis {
  int64_t in = 1, out = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;
};

static inline int64_t floor_div(int64_t a, int64_t b) {  // for b > 0
  return a / b - (a % b < 0);
}

// Where element k of window o lies in the input; before 0 and from `in` on it is padding.
static inline int64_t place_of(const Axis& axis, int64_t o, int64_t k) {
  return o * axis.stride - axis.padding + k * axis.dilation;
}

static inline bool holds(const Axis& axis, int64_t place) {
  return place >= 0 && place < axis.in;
}

// The window whose element k lies at `place`, or -1.
static inline int64_t window_of(const Axis& axis, int64_t place, int64_t k) {
  const int64_t start = place + axis.padding - k * axis.dilation;
  return start >= 0 && start % axis.stride == 0 && start / axis.stride < axis.out ? start / axis.stride : -1;
}

// The windows first .. last - 1 whose element k lies in the input.
static inline int64_t first_window(const Axis& axis, int64_t k) {
  return std::max<int64_t>(0, -floor_div(place_of(axis, 0, k), axis.stride));
}

static inline int64_t last_window(const Axis& axis, int64_t k) {
  return std::min(axis.out, floor_div(axis.in - 1 - place_of(axis, 0, k), axis.stride) + 1);
}

// The first element of window o that does not lie before the input.
static inline int64_t first_element(const Axis& axis, int64_t o) {
  return std::max<int64_t>(0, -floor_div(place_of(axis, o, 0), axis.dilation));
}

// How many windows lie along an axis. Twin of pooled_size in reference/max_pool.py.
static inline int64_t pooled_size(const Axis& axis, bool ceil_mode) {
  const int64_t room = axis.in + 2 * axis.padding - axis.dilation * (axis.kernel - 1) - 1;
  if (!ceil_mode) return floor_div(room, axis.stride) + 1;
  const int64_t count = floor_div(room + axis.stride - 1, axis.stride) + 1;
  return (count - 1) * axis.stride >= axis.in + axis.padding ? count - 1 : count;
}

// Depth, height and width (those that are missing have one element) of an image, and how many channels lie side by
// side in it: all where they come last, one where each channel is an image.
struct Pool {
  Axis depth, height, width;
  int64_t channels = 1;
};

static inline int64_t elements_of(const Pool& pool) {
  return pool.depth.in * pool.height.in * pool.width.in;
}

static inline int64_t windows_of(const Pool& pool) {
  return pool.depth.out * pool.height.out * pool.width.out;
}

static inline int64_t window_size(const Pool& pool) {
  return pool.depth.kernel * pool.height.kernel * pool.width.kernel;
}

// The index in a window of its element (kd, kh, kw).
static inline int64_t index_of(const Pool& pool, int64_t kd, int64_t kh, int64_t kw) {
  return (kd * pool.height.kernel + kh) * pool.width.kernel + kw;
}

// Where the row (d, h) of an image starts among the elements of all images.
static inline int64_t row_start(const Pool& pool, int64_t image, int64_t d, int64_t h) {
  return ((image * pool.depth.in + d) * pool.height.in + h) * pool.width.in;
}

// The elements that an axis and all its windows span.
static inline int64_t span_of(const Axis& axis) {
  const int64_t reach = place_of(axis, axis.out - 1, axis.kernel - 1) + axis.padding + 1;
  return std::max(axis.padding + axis.in, reach);
}

// Whether pool_pull and pool_push copy an image into a frame of padding: not if its channels come last or if wide
// dilations make the frame much larger than the image.
static inline bool takes_frame(const Pool& pool) {
  const auto fits = [](const Axis& axis) {
    return span_of(axis) <= 2 * axis.in + 16;
  };
  return pool.channels == 1 && fits(pool.depth) && fits(pool.height) && fits(pool.width);
}

}  // namespace xattr
