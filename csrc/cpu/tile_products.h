// The products of a perceptron's layers on a tile of rows, by one thread: fp32 values, and factors of the weights'
// dtype.
#pragma once

#include <algorithm>
#include <memory>

#include "cpu/perceptron.h"

namespace xattr {

// A row-major matrix of fp32 of which a tile takes some rows.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;  // elements from row to row

  Rows from(int64_t row) const { return {data + row * stride, stride}; }
};

// The rows of a tensor of fp32 with unit column stride.
inline Rows rows_of(const at::Tensor& t) {
  return {const_cast<float*>(t.const_data_ptr<float>()), std::max(t.stride(0), t.size(1))};
}

// Layers of at least a vector of outputs; narrow ones need no products.
class TileProducts {
 public:
  virtual ~TileProducts() = default;

  // out = in W_l^T, for the layers of `up`.
  virtual void up(int64_t l, int64_t rows, Rows in, Rows out) const = 0;
  // out = in W_l, for the layers of `down`.
  virtual void down(int64_t l, int64_t rows, Rows in, Rows out) const = 0;
  // The rows first .. first + count of out (+)= g.T v, [N_l, N_{l-1}].
  virtual void gradient(
      int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out, bool accumulate) const = 0;
};

// Elements of fp32 that a TileProducts works in.
int64_t products_memory(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down);

// The products of the weights' dtype. The weights of the ranges are laid out for the micro-kernels now.
std::unique_ptr<const TileProducts> tile_products(
    const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down, float* memory);

}  // namespace xattr
