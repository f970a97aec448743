// Products on tiles of oneDNN's micro-kernels.
//
// ATen's own product spends much of its time on packing when a batch has about a hundred rows. Here a tile of rows
// meets a whole weight that lies in cache as it is; transposes, where one is needed, are done in cache-sized blocks.
#include "cpu/gemm.h"

#include <ATen/ops/addmm.h>

#include <algorithm>

#include "cpu/isa/kernels.h"
#include "cpu/micro_kernel.h"

namespace xattr {

namespace {

constexpr int64_t kTileRows = 128;              // of a tile of a product, at most
constexpr int64_t kGradientRows = 64;           // of a tile of a transposed product, at most
constexpr int64_t kLargestFactor = 256 * 1024;  // elements: 1 MiB of fp32, the second-level cache
constexpr int64_t kLargestSum = 1024 * 1024;    // elements that a product is given before it is added to another
constexpr int64_t kSmallestProduct = 48 * 48 * 48;

struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// A thread's share of `size` rows or columns: whole vectors.
int64_t thread_share(int64_t size) {
  return std::max<int64_t>(1, divide_up(divide_up(size, at::get_num_threads()), kVector)) * kVector;
}

// out += a b, by blocks of rows. A sum of its own is more exact than one that starts from what is there.
void add_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  const int64_t height = std::max<int64_t>(1, kLargestSum / std::max<int64_t>(1, out.size(1)));
  for (int64_t begin = 0; begin < out.size(0); begin += height) {
    const int64_t count = std::min(height, out.size(0) - begin);
    out.narrow(0, begin, count).add_(at::mm(a.narrow(0, begin, count), b));
  }
}

// out (+)= a.T b on the tile rows x columns. The columns of a that it needs are transposed block by block.
void add_transposed(
    const at::Tensor& a, const at::Tensor& b, at::Tensor& out, Span rows, Span columns, bool accumulate) {
  const int64_t depth = a.size(0), ld = out.stride(0);
  const float* left = a.const_data_ptr<float>() + rows.begin;
  const float* right = b.const_data_ptr<float>() + columns.begin;
  float* block = scratch(rows.size() * kDepth);
  float* result = out.mutable_data_ptr<float>() + rows.begin * ld + columns.begin;
  for (int64_t start = 0; start < depth; start += kDepth) {
    const int64_t count = std::min(kDepth, depth - start);
    transpose()(left + start * a.stride(0), a.stride(0), block, count, count, rows.size());
    micro_product(
        rows.size(), columns.size(), count, block, count, right + start * b.stride(0), b.stride(0), result, ld,
        accumulate || start > 0);
  }
}

}  // namespace

bool tiles_pay(const at::Tensor& like, int64_t m, int64_t n, int64_t k) {
  // Where a side is shorter than a vector, ATen's matrix-vector product is faster, and sums in more lanes, so more
  // exactly.
  return like.scalar_type() == at::kFloat && std::min({m, n, k}) >= kVector && m * n * k >= kSmallestProduct &&
         n * k <= kLargestFactor && has_micro_kernels(at::kFloat);
}

int64_t tile_rows(int64_t m) {
  return std::min(kTileRows, divide_up(m, at::get_num_threads()));
}

RightFactor right_factor(const at::Tensor& b) {
  // The stride of a single row means nothing and may be smaller than the row.
  if (b.stride(1) == 1) return {b.const_data_ptr<float>(), std::max(b.stride(0), b.size(1))};
  // A stride that is a power of two would map the rows of a block to few sets of the first-level cache.
  const int64_t rows = b.size(0), columns = b.size(1), stride = columns + kVector;
  float* own = scratch(rows * stride);
  transpose()(b.const_data_ptr<float>(), b.stride(1), own, stride, columns, rows);
  return {own, stride};
}

void multiply_rows(const at::Tensor& a, const RightFactor& b, at::Tensor& out, int64_t begin, int64_t end) {
  const float* left = a.const_data_ptr<float>() + begin * a.stride(0);
  float* result = out.mutable_data_ptr<float>() + begin * out.stride(0);
  micro_product(
      end - begin, out.size(1), a.size(1), left, a.stride(0), b.data, b.stride, result, out.stride(0),
      /*accumulate=*/false);
}

at::Tensor transposed_product(const at::Tensor& a, const at::Tensor& b, const at::Tensor* c, const at::Tensor* d) {
  const int64_t n = a.size(1), k = b.size(1), depth = a.size(0) + (c ? c->size(0) : 0);
  // Threads divide the longer side of the result: each then reads less of what the others have just written.
  const bool by_columns = k > n;
  const int64_t side = by_columns ? k : n, share = thread_share(side), parts = divide_up(side, share);
  if (a.size(0) == 0 || parts < at::get_num_threads() || !tiles_pay(a, depth, k, n)) {
    at::Tensor out = at::mm(a.t(), b);
    if (c) add_product(out, c->t(), *d);
    return out;
  }
  const at::Tensor left = row_major(a), right = row_major(b);
  const at::Tensor left2 = c ? row_major(*c) : left, right2 = d ? row_major(*d) : right;
  at::Tensor out = at::empty({n, k}, a.options());
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    const Span part{first * share, std::min(side, last * share)};
    const Span rows = by_columns ? Span{0, n} : part, columns = by_columns ? part : Span{0, k};
    for (int64_t begin = rows.begin; begin < rows.end; begin += kGradientRows) {
      const Span block{begin, std::min(rows.end, begin + kGradientRows)};
      add_transposed(left, right, out, block, columns, /*accumulate=*/false);
      if (c) add_transposed(left2, right2, out, block, columns, /*accumulate=*/true);
    }
  });
  return out;
}

void add_transposed_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  add_product(out, a.t(), b);
}

}  // namespace xattr
