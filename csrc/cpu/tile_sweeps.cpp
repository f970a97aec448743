#include "cpu/tile_sweeps.h"

#include "cpu/bits.h"
#include "cpu/isa/kernels.h"
#include "cpu/micro_kernel.h"

namespace xattr {

namespace {

constexpr int64_t kPanel = 64;  // columns of a right factor that the first-level cache holds, kDepth deep

// Calls body(first, count) for the panels of a matrix.
template <typename Body>
void for_panels(int64_t columns, Body body) {
  for (int64_t first = 0; first < columns; first += kPanel) body(first, std::min(kPanel, columns - first));
}

// Calls body(data, bits, columns, begin, end) on the words of some rows: at once where the rows lie one after another.
template <typename Bits, typename Body>
void for_row_words(int64_t rows, int64_t columns, Rows values, Bits* bits, Body body) {
  const int64_t words = words_of(columns);
  if (values.stride == columns) return body(values.data, bits, rows * words);
  for (int64_t r = 0; r < rows; ++r) body(values.from(r).data, bits + r * words, words);
}

// The rows first .. first + count of out (+)= g.T v; `transposed` has room for that many rows of g.T.
void gradient_rows(
    const Perceptron& net, int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out,
    bool accumulate, float* transposed) {
  const int64_t k = net.width(l - 1);
  g.data += first;
  out += first * k;
  if (is_narrow(net.width(l)))
    return narrow().gradient(rows, count, k, g.data, g.stride, v.data, v.stride, out, accumulate);
  transpose()(g.data, g.stride, transposed, rows, rows, count);
  for_panels(k, [&](int64_t column, int64_t columns) {
    micro_product(count, columns, rows, transposed, rows, v.data + column, v.stride, out + column, k, accumulate);
  });
}

}  // namespace

TileSweeps::TileSweeps(const Perceptron& net, const SweepPlan& plan, int64_t first, int64_t last)
    : net_(net), slopes_(net.slopes.begin(), net.slopes.end()), panels_(net.layers() + 1) {
  int64_t widest = 0, size = 0;
  for (int64_t l = 0; l <= net.layers(); ++l) widest = std::max(widest, round_up(net.width(l), kVector));
  // A stride that is a power of two would map the rows of a tile to few sets of the first-level cache.
  const int64_t height = plan.tallest(), stride = widest + kVector;
  for (int64_t l = first; l <= last; ++l) {
    if (!is_narrow(net.width(l))) size += round_up(net.width(l), kPanel) * net.width(l - 1);
  }
  float* memory = scratch(size + buffers_.size() * height * stride + widest * round_up(height, kVector));
  for (int64_t l = first; l <= last; ++l) {
    if (is_narrow(net.width(l))) continue;
    const int64_t depth = net.width(l - 1);
    const float* weight = net.weight(l).const_data_ptr<float>();
    panels_[l] = memory;
    for_panels(net.width(l), [&](int64_t begin, int64_t count) {
      transpose()(weight + begin * depth, depth, memory, kPanel, count, depth);
      memory += kPanel * depth;
    });
  }
  for (Rows& buffer : buffers_) {
    buffer = {memory, stride};
    memory += height * stride;
  }
  transposed_ = memory;
}

void TileSweeps::multiply_up(int64_t l, int64_t rows, Rows in, Rows out) const {
  const int64_t n = net_.width(l), k = net_.width(l - 1);
  if (is_narrow(n)) {
    const float* weight = net_.weight(l).const_data_ptr<float>();
    return narrow().forward(rows, n, k, in.data, in.stride, weight, out.data, out.stride);
  }
  for_panels(n, [&](int64_t first, int64_t count) {
    const float* panel = panels_[l] + first * k;
    micro_product(rows, count, k, in.data, in.stride, panel, kPanel, out.data + first, out.stride, false);
  });
}

void TileSweeps::forward(int64_t l, int64_t rows, Rows in, Rows out, int32_t* bits) const {
  multiply_up(l, rows, in, out);
  if (!bits) return;
  const int64_t n = net_.width(l);
  const auto kernel = elementwise(at::kFloat).relu_mask;
  for_row_words(rows, n, out, bits, [&](float* values, int32_t* words, int64_t end) {
    kernel(values, slope(l), /*by_column=*/false, values, words, n, 0, end);
  });
}

void TileSweeps::mask(int64_t l, int64_t rows, Rows values, const int32_t* bits) const {
  const int64_t n = net_.width(l);
  const auto kernel = elementwise(at::kFloat).mask_mul;
  for_row_words(rows, n, values, bits, [&](float* data, const int32_t* words, int64_t end) {
    kernel(data, words, slope(l), /*by_column=*/false, data, n, 0, end);
  });
}

void TileSweeps::tangent(int64_t l, int64_t rows, Rows in, Rows out, const int32_t* bits) const {
  multiply_up(l, rows, in, out);
  if (bits) mask(l, rows, out, bits);
}

void TileSweeps::cotangent(int64_t l, int64_t rows, Rows in, Rows out, const int32_t* bits) const {
  const int64_t n = net_.width(l), k = net_.width(l - 1);
  const float* weight = net_.weight(l).const_data_ptr<float>();
  if (is_narrow(n)) {
    narrow().cotangent(rows, n, k, in.data, in.stride, weight, out.data, out.stride);
  } else {
    for_panels(k, [&](int64_t first, int64_t count) {
      micro_product(rows, count, n, in.data, in.stride, weight + first, k, out.data + first, out.stride, false);
    });
  }
  if (bits) mask(l - 1, rows, out, bits);
}

void TileSweeps::gradient(int64_t l, int64_t rows, Rows g, Rows v, float* out, bool accumulate) const {
  gradient_rows(net_, l, rows, g, v, 0, net_.width(l), out, accumulate, transposed_);
}

void add_gradient(
    const Perceptron& net, int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out,
    bool accumulate) {
  if (count == 0) return;
  gradient_rows(net, l, rows, g, v, first, count, out, accumulate, scratch(count * rows));
}

}  // namespace xattr
