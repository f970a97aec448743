// How the sweeps of a perceptron run on this processor: the rules, measured, in one place.
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/micro_kernel.h"

namespace xattr {

struct SweepPlan {
  int64_t rows;

  // Whether each thread takes tiles of rows through all layers while they, and the weights, lie in its cache. Otherwise
  // whole products run one layer after another.
  bool tiles = false;

  // Of a plan by tiles. Each thread takes rows next to one another, in tiles of at most `height`.
  int64_t threads = 1, height = 1;

  // Whether each thread adds up the weight gradients of its tiles, and the sums are added in the end. Otherwise, where
  // a thread has one tile of fp32, they are taken over the whole batch, each thread making some of their rows.
  bool sums_gradients = false;

  // Whether the own cotangent at the last hidden layer is swept again in the backward pass instead of being kept: where
  // the last layer is narrow that costs next to nothing.
  bool repeats_last = false;

  // widths: N_0 .. N_L of the layers.
  SweepPlan(const std::vector<int64_t>& widths, int64_t rows, c10::ScalarType dtype);

  int64_t begin(int64_t thread) const { return rows * thread / threads; }
  // Rows over which a gradient is summed at once.
  int64_t tallest_sum() const { return sums_gradients ? height : rows; }
};

// Whether a layer of this many outputs is too narrow for the micro-kernels.
inline bool is_narrow(int64_t width) {
  return width < kVector;
}

}  // namespace xattr
