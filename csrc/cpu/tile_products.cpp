#include "cpu/tile_products.h"

#include <utility>
#include <vector>

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

int64_t widest(const Perceptron& net) {
  int64_t found = 0;
  for (int64_t l = 0; l <= net.layers(); ++l) found = std::max(found, net.width(l));
  return found;
}

// W_l and the activations as they are; W_l^T in panels of some columns that lie one after another.
class FloatProducts : public TileProducts {
 public:
  FloatProducts(const Perceptron& net, LayerRange up, float* memory) : net_(net), panels_(net.layers() + 1) {
    for (int64_t l = up.first; l <= up.last; ++l) {
      if (is_narrow(net.width(l))) continue;
      const int64_t depth = net.width(l - 1);
      panels_[l] = memory;
      for_panels(net.width(l), [&](int64_t first, int64_t count) {
        transpose()(weight(l) + first * depth, depth, memory, kPanel, count, depth);
        memory += kPanel * depth;
      });
    }
    transposed_ = memory;
  }

  static int64_t memory(const Perceptron& net, const SweepPlan& plan, LayerRange up) {
    int64_t size = round_up(widest(net), kVector) * round_up(plan.tallest_sum(), kVector);
    for (int64_t l = up.first; l <= up.last; ++l) {
      if (!is_narrow(net.width(l))) size += round_up(net.width(l), kPanel) * net.width(l - 1);
    }
    return size;
  }

  void up(int64_t l, int64_t rows, Rows in, Rows out) const override {
    const int64_t k = net_.width(l - 1);
    for_panels(net_.width(l), [&](int64_t first, int64_t count) {
      const float* panel = panels_[l] + first * k;
      micro_product(rows, count, k, in.data, in.stride, panel, kPanel, out.data + first, out.stride, false);
    });
  }

  void down(int64_t l, int64_t rows, Rows in, Rows out) const override {
    const int64_t n = net_.width(l), k = net_.width(l - 1);
    for_panels(k, [&](int64_t first, int64_t count) {
      micro_product(rows, count, n, in.data, in.stride, weight(l) + first, k, out.data + first, out.stride, false);
    });
  }

  void gradient(int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out, bool accumulate)
      const override {
    const int64_t k = net_.width(l - 1);
    transpose()(g.data + first, g.stride, transposed_, rows, rows, count);
    for_panels(k, [&](int64_t column, int64_t columns) {
      micro_product(
          count, columns, rows, transposed_, rows, v.data + column, v.stride, out + first * k + column, k, accumulate);
    });
  }

 private:
  const float* weight(int64_t l) const { return net_.weight(l).const_data_ptr<float>(); }

  const Perceptron& net_;
  std::vector<float*> panels_;  // by layer
  float* transposed_;
};

// Factors of bf16. The right factor of a product lies in pairs of rows, which the processor multiplies and adds at
// once.
class BFloat16Products : public TileProducts {
 public:
  BFloat16Products(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down, float* memory)
      : net_(net), memory_(reinterpret_cast<uint32_t*>(memory)), up_(net.layers() + 1), down_(net.layers() + 1) {
    for (uint32_t** part : {&left_, &right_, &transposed_}) *part = take(part_size(net, plan));
    for (int64_t l = 1; l <= net.layers(); ++l) {
      if (is_narrow(net.width(l))) continue;
      if (up.contains(l)) lay_out_up(l);
      if (down.contains(l)) lay_out_down(l);
    }
  }

  static int64_t memory(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down) {
    int64_t size = 3 * part_size(net, plan);
    for (int64_t l = 1; l <= net.layers(); ++l) {
      const int64_t n = net.width(l), k = net.width(l - 1);
      if (up.contains(l)) size += round_up(n, kPanel) * divide_up(k, 2);
      if (down.contains(l)) size += round_up(k, kPanel) * divide_up(n, 2);
    }
    return size;
  }

  void up(int64_t l, int64_t rows, Rows in, Rows out) const override {
    multiply(rows, net_.width(l), net_.width(l - 1), in, up_[l], out);
  }

  void down(int64_t l, int64_t rows, Rows in, Rows out) const override {
    multiply(rows, net_.width(l - 1), net_.width(l), in, down_[l], out);
  }

  void gradient(int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out, bool accumulate)
      const override {
    const int64_t k = net_.width(l - 1), pairs = divide_up(rows, 2);
    rounded(rows, count, {g.data + first, g.stride});
    bfloat16().pair_rows(left(), even(count), right_, count, rows, count);  // [pairs, count, 2]
    transpose()(reinterpret_cast<float*>(right_), count, reinterpret_cast<float*>(transposed_), pairs, pairs, count);
    rounded(rows, k, v);
    bfloat16().pair_rows(left(), even(k), right_, k, rows, k);
    for_panels(k, [&](int64_t column, int64_t columns) {
      micro_product(
          count, columns, 2 * pairs, elements(transposed_), 2 * pairs, elements(right_ + column), k,
          out + first * k + column, k, accumulate);
    });
  }

 private:
  static int64_t even(int64_t size) { return round_up(size, 2); }
  static c10::BFloat16* elements(uint32_t* pairs) { return reinterpret_cast<c10::BFloat16*>(pairs); }
  c10::BFloat16* left() const { return elements(left_); }

  // A part holds a factor of a tile, or a panel of rows of a weight.
  static int64_t part_size(const Perceptron& net, const SweepPlan& plan) {
    return round_up(widest(net), kVector) * divide_up(std::max(plan.tallest_sum(), kPanel), 2);
  }

  uint32_t* take(int64_t size) { return std::exchange(memory_, memory_ + size); }

  // Panels of W_l^T.
  void lay_out_up(int64_t l) {
    const int64_t k = net_.width(l - 1), depth = divide_up(k, 2);
    const auto* weight = net_.weight(l).const_data_ptr<c10::BFloat16>();
    up_[l] = take(round_up(net_.width(l), kPanel) * depth);
    for_panels(net_.width(l), [&](int64_t first, int64_t count) {
      for (int64_t r = 0; r < count; ++r) {  // rows of whole pairs
        c10::BFloat16* row = elements(left_ + r * depth);
        row[2 * depth - 1] = 0;
        std::copy_n(weight + (first + r) * k, k, row);
      }
      auto* panel = reinterpret_cast<float*>(up_[l] + first * depth);
      transpose()(reinterpret_cast<float*>(left_), depth, panel, kPanel, count, depth);
    });
  }

  // Panels of W_l.
  void lay_out_down(int64_t l) {
    const int64_t n = net_.width(l), k = net_.width(l - 1), depth = divide_up(n, 2);
    const auto* weight = net_.weight(l).const_data_ptr<c10::BFloat16>();
    down_[l] = take(round_up(k, kPanel) * depth);
    for_panels(k, [&](int64_t first, int64_t count) {
      bfloat16().pair_rows(weight + first, k, down_[l] + first * depth, kPanel, n, count);
    });
  }

  // left() = in, rows of whole pairs.
  void rounded(int64_t rows, int64_t columns, Rows in) const {
    bfloat16().round_rows(in.data, in.stride, left(), even(columns), rows, columns, /*even=*/true);
  }

  void multiply(int64_t rows, int64_t n, int64_t k, Rows in, uint32_t* panels, Rows out) const {
    rounded(rows, k, in);
    for_panels(n, [&](int64_t first, int64_t count) {
      const c10::BFloat16* panel = elements(panels + first * divide_up(k, 2));
      micro_product(rows, count, even(k), left(), even(k), panel, kPanel, out.data + first, out.stride, false);
    });
  }

  const Perceptron& net_;
  uint32_t* memory_;                       // what is left of it
  uint32_t *left_, *right_, *transposed_;  // factors of a tile: rows of pairs
  std::vector<uint32_t*> up_, down_;       // by layer
};

}  // namespace

int64_t products_memory(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down) {
  return net.weights[0].scalar_type() == at::kFloat ? FloatProducts::memory(net, plan, up)
                                                    : BFloat16Products::memory(net, plan, up, down);
}

std::unique_ptr<const TileProducts> tile_products(
    const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down, float* memory) {
  if (net.weights[0].scalar_type() == at::kFloat) return std::make_unique<FloatProducts>(net, up, memory);
  return std::make_unique<BFloat16Products>(net, plan, up, down, memory);
}

}  // namespace xattr
