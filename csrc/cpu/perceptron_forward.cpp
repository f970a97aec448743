// The forward and the attribution sweep of a perceptron.
#include <ATen/ops/mul.h>

#include <algorithm>

#include "cpu/layer_sweeps.h"
#include "cpu/perceptron_sweeps.h"
#include "cpu/tile_sweeps.h"

namespace xattr {

namespace {

// Which of the layers 0 .. L are listed.
std::vector<bool> listed(const Perceptron& net, at::IntArrayRef layers) {
  std::vector<bool> found(net.layers() + 1);
  for (const int64_t l : layers) found[l] = true;
  return found;
}

Attributed by_layers(
    const Perceptron& net, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const int64_t last = net.layers();
  const std::vector<bool> keeps_h = listed(net, keep_h), keeps_g = listed(net, keep_g);
  Attributed found;
  at::Tensor h = x;
  for (int64_t l = 1; l < last; ++l) {
    at::Tensor bits;
    std::tie(h, bits) = linear_relu_mask(h, net.weight(l), slope_of(net, l));
    found.bits.push_back(bits);
    if (keeps_h[l]) found.h.push_back(h);
  }
  found.y = matmul_mask(h, net.weight(last).t(), std::nullopt, std::nullopt);
  h.reset();
  at::Tensor g = u;
  for (int64_t l = last; l >= 1; --l) {
    g = cotangent_of(net, l, g, found.bits);
    if (keeps_g[l - 1]) found.g.push_back(g);
  }
  std::reverse(found.g.begin(), found.g.end());
  found.attribution = x.mul(g);
  return found;
}

// Where a sweep writes the values of each layer: those of kept tensors, which are made, or nowhere.
std::vector<Rows> places_of(const Perceptron& net, at::IntArrayRef layers, const at::Tensor& x, Tensors& made) {
  std::vector<Rows> found(net.layers());
  for (const int64_t l : layers) {
    made.push_back(at::empty({x.size(0), net.width(l)}, x.options()));
    found[l] = rows_of(made.back());
  }
  return found;
}

Attributed by_tiles(
    const Perceptron& net, const SweepPlan& plan, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h,
    at::IntArrayRef keep_g) {
  const int64_t batch = x.size(0), last = net.layers(), inputs = net.width(0);
  Attributed found{
      at::empty({batch, net.width(last)}, x.options()), at::empty({batch, inputs}, x.options()), {}, {}, {}};
  for (int64_t l = 1; l < last; ++l) {
    found.bits.push_back(at::empty({batch, words_of(net.width(l))}, x.options().dtype(at::kInt)));
  }
  const std::vector<Rows> hs = places_of(net, keep_h, x, found.h), gs = places_of(net, keep_g, x, found.g);
  const Rows xs = rows_of(x), us = rows_of(u), ys = rows_of(found.y), attributions = rows_of(found.attribution);
  for_tiles(net, plan, 1, last, [&](const TileSweeps& sweeps, int64_t, int64_t begin, int64_t end) {
    const int64_t rows = end - begin;
    const auto place = [&](Rows kept, int64_t l) {
      return kept.data ? kept.from(begin) : sweeps.buffer(l);
    };
    Rows h = xs.from(begin);
    for (int64_t l = 1; l < last; ++l) {
      const Rows out = place(hs[l], l);
      sweeps.forward(l, rows, h, out, mask_rows(found.bits, l, begin));
      h = out;
    }
    sweeps.forward(last, rows, h, ys.from(begin), nullptr);
    Rows g = us.from(begin);
    for (int64_t l = last; l >= 1; --l) {
      const Rows out = place(gs[l - 1], l);
      sweeps.cotangent(l, rows, g, out, mask_rows(found.bits, l - 1, begin));
      g = out;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float *row = xs.from(begin + r).data, *g0 = g.from(r).data;
      float* a = attributions.from(begin + r).data;
      for (int64_t i = 0; i < inputs; ++i) a[i] = row[i] * g0[i];
    }
  });
  return found;
}

}  // namespace

Attributed attribute_perceptron(
    const Perceptron& net, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const PlainDispatch plain;
  const SweepPlan plan = net.plan(x.size(0));
  if (!plan.tiles) return by_layers(net, x, u, keep_h, keep_g);
  return by_tiles(net, plan, row_major(x), row_major(u), keep_h, keep_g);
}

}  // namespace xattr
