// The sweeps of section 2 of the design on a tile of rows, one layer at a time, by one thread.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "cpu/tile_products.h"

namespace xattr {

// The maps of a perceptron's layers on tiles, and one thread's memory for them.
class TileSweeps {
 public:
  // up: the layers that will be asked for forward or tangent maps; down: for cotangents. Their weights are laid out
  // now, in memory of the thread's own that is valid until its next TileSweeps.
  TileSweeps(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down);

  // out = activation(in W_l^T), and its mask; without bits, no activation.
  void forward(int64_t l, int64_t rows, Rows in, Rows out, int32_t* bits) const;
  // out = m_l * (in W_l^T); without bits, no mask.
  void tangent(int64_t l, int64_t rows, Rows in, Rows out, const int32_t* bits) const;
  // out = m_{l-1} * (in W_l); without bits, no mask.
  void cotangent(int64_t l, int64_t rows, Rows in, Rows out, const int32_t* bits) const;
  // The rows first .. first + count of out (+)= g.T v, [N_l, N_{l-1}].
  void gradient(
      int64_t l, int64_t rows, Rows g, Rows v, int64_t first, int64_t count, float* out, bool accumulate) const;

  // The rows of a tensor from `begin` on, in `buffer` where they must be widened to fp32.
  Rows load(const at::Tensor& t, int64_t begin, int64_t rows, Rows buffer) const;
  // Where to write rows that are to end in a tensor, which may be undefined: the tensor's own if they are of fp32.
  Rows place(const at::Tensor& t, int64_t begin, Rows buffer) const;
  // Rounds rows into a tensor, which may be undefined, unless they are there already.
  void store(Rows values, const at::Tensor& t, int64_t begin, int64_t rows) const;

  // One of two matrices of the tile's height and the network's largest width, by turns for the values of each layer.
  Rows buffer(int64_t l) const { return buffers_[l % 2]; }
  // Two more.
  Rows spare() const { return buffers_[2]; }
  Rows partner() const { return buffers_[3]; }

 private:
  void multiply_up(int64_t l, int64_t rows, Rows in, Rows out) const;
  // A narrow weight, in fp32.
  const float* narrow_weight(int64_t l) const;
  void mask(int64_t l, int64_t rows, Rows values, const int32_t* bits) const;
  const float* slope(int64_t l) const { return slopes_[l - 1] == 0 ? nullptr : &slopes_[l - 1]; }

  const Perceptron& net_;
  std::vector<float> slopes_;
  std::array<Rows, 4> buffers_;
  float* last_weight_ = nullptr;  // of the last layer, where it is narrow and was widened
  std::unique_ptr<const TileProducts> products_;
};

// Calls body(sweeps, thread, begin, end) for every tile, those of a thread in order; up, down: as for TileSweeps.
template <typename Body>
void for_tiles(const Perceptron& net, const SweepPlan& plan, LayerRange up, LayerRange down, Body body) {
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    const TileSweeps sweeps(net, plan, up, down);
    for (int64_t thread = first_thread; thread < end_thread; ++thread) {
      for (int64_t row = plan.begin(thread), end = plan.begin(thread + 1); row < end; row += plan.height) {
        body(sweeps, thread, row, std::min(end, row + plan.height));
      }
    }
  });
}

}  // namespace xattr
