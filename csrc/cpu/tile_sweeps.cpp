#include "cpu/tile_sweeps.h"

#include <utility>

#include "cpu/bits.h"
#include "cpu/isa/kernels.h"
#include "cpu/micro_kernel.h"

namespace xattr {

namespace {

// Calls body(data, bits, columns, begin, end) on the words of some rows: at once where the rows lie one after another.
template <typename Bits, typename Body>
void for_row_words(int64_t rows, int64_t columns, Rows values, Bits* bits, Body body) {
  const int64_t words = words_of(columns);
  if (values.stride == columns) return body(values.data, bits, rows * words);
  for (int64_t r = 0; r < rows; ++r) body(values.from(r).data, bits + r * words, words);
}

// The elements of a tensor of bf16 with unit column stride from row `begin` on, and the elements from row to row.
std::pair<c10::BFloat16*, int64_t> halves_of(const at::Tensor& t, int64_t begin) {
  const int64_t stride = std::max(t.stride(0), t.size(1));
  return {const_cast<c10::BFloat16*>(t.const_data_ptr<c10::BFloat16>()) + begin * stride, stride};
}

}  // namespace

TileSweeps::TileSweeps(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down)
    : net_(net), slopes_(net.slopes.begin(), net.slopes.end()) {
  int64_t widest = 0;
  for (int64_t l = 0; l <= net.layers(); ++l) widest = std::max(widest, round_up(net.width(l), kVector));
  // A stride that is a power of two would map the rows of a tile to few sets of the first-level cache.
  const int64_t stride = widest + kVector, size = plan.height * stride;
  const at::Tensor& last = net.weights.back();
  const bool widens = is_narrow(last.size(0)) && last.scalar_type() != at::kFloat;
  float* memory = scratch(
      products_memory(net, plan, up, down) + buffers_.size() * size + (widens ? round_up(last.numel(), kVector) : 0));
  for (Rows& buffer : buffers_) buffer = {std::exchange(memory, memory + size), stride};
  if (widens) {
    last_weight_ = std::exchange(memory, memory + round_up(last.numel(), kVector));
    bfloat16().widen_rows(halves_of(last, 0).first, 0, last_weight_, 0, 1, last.numel());
  }
  products_ = tile_products(net, plan, up, down, memory);
}

Rows TileSweeps::load(const at::Tensor& t, int64_t begin, int64_t rows, Rows buffer) const {
  if (t.scalar_type() == at::kFloat) return rows_of(t).from(begin);
  const auto [data, stride] = halves_of(t, begin);
  bfloat16().widen_rows(data, stride, buffer.data, buffer.stride, rows, t.size(1));
  return buffer;
}

Rows TileSweeps::place(const at::Tensor& t, int64_t begin, Rows buffer) const {
  return t.defined() && t.scalar_type() == at::kFloat ? rows_of(t).from(begin) : buffer;
}

void TileSweeps::store(Rows values, const at::Tensor& t, int64_t begin, int64_t rows) const {
  if (!t.defined() || t.scalar_type() == at::kFloat) return;
  const auto [data, stride] = halves_of(t, begin);
  bfloat16().round_rows(values.data, values.stride, data, stride, rows, t.size(1), /*even=*/false);
}

const float* TileSweeps::narrow_weight(int64_t l) const {
  return last_weight_ ? last_weight_ : net_.weight(l).const_data_ptr<float>();
}

void TileSweeps::multiply_up(int64_t l, int64_t rows, Rows in, Rows out) const {
  const int64_t n = net_.width(l), k = net_.width(l - 1);
  if (!is_narrow(n)) return products_->up(l, rows, in, out);
  narrow().forward(rows, n, k, in.data, in.stride, narrow_weight(l), out.data, out.stride);
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
  if (is_narrow(n)) {
    narrow().cotangent(rows, n, k, in.data, in.stride, narrow_weight(l), out.data, out.stride);
  } else {
    products_->down(l, rows, in, out);
  }
  if (bits) mask(l - 1, rows, out, bits);
}

void TileSweeps::gradient(
    int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out, bool accumulate) const {
  if (count == 0) return;
  if (!is_narrow(net_.width(l))) return products_->gradient(l, rows, g, v, first, count, out, accumulate);
  const int64_t k = net_.width(l - 1);
  narrow().gradient(rows, count, k, g.data + first, g.stride, v.data, v.stride, out + first * k, accumulate);
}

}  // namespace xattr
