#include "cpu/sweep_plan.h"

#include <ATen/Parallel.h>

#include "cpu/perceptron.h"

namespace xattr {

namespace {

constexpr int64_t kFewestRows = 32;
constexpr int64_t kTallestTile = 128;
// Elements of all weights for which they and their gradients have room in the second-level cache.
constexpr int64_t kLargestNetwork = 384 * 1024;

bool by_tiles(const std::vector<int64_t>& widths, int64_t rows, c10::ScalarType dtype) {
  if (rows < kFewestRows || !has_micro_kernels(dtype)) return false;
  int64_t size = 0;
  for (size_t l = 0; l + 1 < widths.size(); ++l) {
    if (is_narrow(widths[l])) return false;  // only the last layer may be
    size += widths[l] * widths[l + 1];
  }
  return widths.back() > 0 && size <= kLargestNetwork;
}

}  // namespace

SweepPlan::SweepPlan(const std::vector<int64_t>& widths, int64_t rows, c10::ScalarType dtype)
    : rows(rows), tiles(by_tiles(widths, rows, dtype)) {
  if (!tiles) return;
  threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows / kVector));
  const int64_t share = divide_up(rows, threads);
  height = divide_up(share, divide_up(share, kTallestTile));
  // Gradients of bf16 are summed in fp32, which has no place in the result.
  sums_gradients = threads == 1 || height * threads < rows || dtype != c10::kFloat;
  repeats_last = sums_gradients && is_narrow(widths.back());
}

SweepPlan Perceptron::plan(int64_t rows) const {
  std::vector<int64_t> widths;
  for (int64_t l = 0; l <= layers(); ++l) widths.push_back(width(l));
  return SweepPlan(widths, rows, weights[0].scalar_type());
}

}  // namespace xattr
