// Windows by rows: what runs over them without a division for each.
#pragma once

#include "pool.h"

namespace xattr {
inline namespace CPU_CAPABILITY {

// Some windows of one row: ow, ow + 1, ... of the windows (od, oh) of an image; `lane` counts windows before them.
struct WindowRow {
  int64_t image, od, oh, ow, count, lane;
};

// body(row) for the windows begin .. end of all images.
template <typename Body>
void for_window_rows(const Pool& pool, int64_t begin, int64_t end, const Body& body) {
  const int64_t rows = begin / pool.width.out, planes = rows / pool.height.out;
  WindowRow row = {planes / pool.depth.out, planes % pool.depth.out, rows % pool.height.out, begin % pool.width.out};
  for (row.lane = 0; row.lane < end - begin; row.lane += row.count, row.ow = 0) {
    row.count = std::min(pool.width.out - row.ow, end - begin - row.lane);
    body(row);
    if (++row.oh < pool.height.out) continue;
    row.oh = 0;
    if (++row.od < pool.depth.out) continue;
    row.od = 0;
    ++row.image;
  }
}

// body(lane, place, count) for the windows begin .. end whose element (kd, kh, kw) lies in the input, `count` in a row:
// how many windows come before the first of them, and where its element lies among those of all images.
template <typename Body>
void for_element_rows(
    const Pool& pool, int64_t kd, int64_t kh, int64_t kw, int64_t begin, int64_t end, const Body& body) {
  const int64_t first = first_window(pool.width, kw), last = last_window(pool.width, kw);
  for_window_rows(pool, begin, end, [&](const WindowRow& row) {
    const int64_t d = place_of(pool.depth, row.od, kd), h = place_of(pool.height, row.oh, kh);
    const int64_t from = std::max(first, row.ow), count = std::min(last, row.ow + row.count) - from;
    if (!holds(pool.depth, d) || !holds(pool.height, h) || count <= 0) return;
    body(row.lane + from - row.ow, row_start(pool, row.image, d, h) + place_of(pool.width, from, kw), count);
  });
}

}  // namespace CPU_CAPABILITY
}  // namespace xattr
