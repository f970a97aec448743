// The layout and the geometry of a pooling, for the glue of every device.
#pragma once

#include <ATen/core/Tensor.h>

#include "checks.h"
#include "cpu/pool.h"

namespace xattr {

// The layout of t that pooling keeps. Twin of memory_format in reference/max_pool.py.
inline at::MemoryFormat pool_format(const at::Tensor& t) {
  if (t.dim() != 4 && t.dim() != 5) return at::MemoryFormat::Contiguous;
  const auto last = t.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
  const bool keeps = t.stride(1) == 1 && t.stride(-1) == t.size(1) && t.is_contiguous(last);
  return keeps ? last : at::MemoryFormat::Contiguous;
}

// The geometry of pooling an input of shape `in` to `out`, both [B, C, ...], in a layout.
inline Pool pool_of(at::IntArrayRef in, at::IntArrayRef out, const Windows& windows, at::MemoryFormat format) {
  Pool pool;
  Axis* axes[] = {&pool.width, &pool.height, &pool.depth};
  for (int64_t d = windows.dims() - 1, i = 0; d >= 0; --d, ++i) {
    *axes[i] = windows.axis(d, in[d + 2], false);
    axes[i]->out = out[d + 2];
  }
  if (format != at::MemoryFormat::Contiguous) pool.channels = in[1];
  return pool;
}

}  // namespace xattr
