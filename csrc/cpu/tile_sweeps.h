// The sweeps of section 2 of the design on a tile of rows, one layer at a time, by one thread.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <vector>

#include "cpu/perceptron.h"

namespace xattr {

// A row-major matrix of which a tile takes some rows.
struct Rows {
  float* data = nullptr;
  int64_t stride = 0;  // elements from row to row

  Rows from(int64_t row) const { return {data + row * stride, stride}; }
};

// The rows of a tensor with unit column stride.
inline Rows rows_of(const at::Tensor& t) {
  return {const_cast<float*>(t.const_data_ptr<float>()), std::max(t.stride(0), t.size(1))};
}

// The maps of a perceptron's layers on tiles, and one thread's memory for them.
class TileSweeps {
 public:
  // The layers first .. last will be asked for forward or tangent maps. Their weights are transposed now, into memory
  // of the thread's own that is valid until its next TileSweeps.
  TileSweeps(const Perceptron& net, const SweepPlan& plan, int64_t first, int64_t last);

  // out = activation(in W_l^T), and its mask; without bits, no activation.
  void forward(int64_t l, int64_t rows, Rows in, Rows out, int32_t* bits) const;
  // out = m_l * (in W_l^T); without bits, no mask.
  void tangent(int64_t l, int64_t rows, Rows in, Rows out, const int32_t* bits) const;
  // out = m_{l-1} * (in W_l); without bits, no mask.
  void cotangent(int64_t l, int64_t rows, Rows in, Rows out, const int32_t* bits) const;
  // out (+)= g.T v, [N_l, N_{l-1}].
  void gradient(int64_t l, int64_t rows, Rows g, Rows v, float* out, bool accumulate) const;

  // One of two matrices of the tile's height and the network's largest width, by turns for the values of each layer.
  Rows buffer(int64_t l) const { return buffers_[l % 2]; }
  // A third one.
  Rows spare() const { return buffers_[2]; }

 private:
  void multiply_up(int64_t l, int64_t rows, Rows in, Rows out) const;
  void mask(int64_t l, int64_t rows, Rows values, const int32_t* bits) const;
  const float* slope(int64_t l) const { return slopes_[l - 1] == 0 ? nullptr : &slopes_[l - 1]; }

  const Perceptron& net_;
  std::vector<float> slopes_;
  std::vector<float*> panels_;  // by layer: W_l^T, in panels of some columns that lie one after another
  std::array<Rows, 3> buffers_;
  float* transposed_;
};

// Calls body(sweeps, thread, begin, end) for every tile, those of a thread in order; first, last: as for TileSweeps.
template <typename Body>
void for_tiles(const Perceptron& net, const SweepPlan& plan, int64_t first, int64_t last, Body body) {
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    const TileSweeps sweeps(net, plan, first, last);
    for (int64_t thread = first_thread; thread < end_thread; ++thread) {
      for (int64_t row = plan.begin(thread), end = plan.begin(thread + 1); row < end; row += plan.height) {
        body(sweeps, thread, row, std::min(end, row + plan.height));
      }
    }
  });
}

// The rows first .. first + count of out (+)= g.T v, [N_l, N_{l-1}], for a batch of any size.
void add_gradient(
    const Perceptron& net, int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out,
    bool accumulate);

}  // namespace xattr
