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
  if (!u.defined()) {
    found.attribution = at::empty({0}, x.options());
    return found;
  }
  at::Tensor g = u;
  for (int64_t l = last; l >= 1; --l) {
    g = cotangent_of(net, l, g, found.bits);
    if (keeps_g[l - 1]) found.g.push_back(g);
  }
  std::reverse(found.g.begin(), found.g.end());
  found.attribution = x.mul(g);
  return found;
}

// Tensors for the values of the listed layers, by layer; undefined for the others. They are added to `made` too.
Tensors kept_by_layer(const Perceptron& net, at::IntArrayRef layers, const at::Tensor& x, Tensors& made) {
  Tensors found(net.layers());
  for (const int64_t l : layers) {
    found[l] = at::empty({x.size(0), net.width(l)}, x.options());
    made.push_back(found[l]);
  }
  return found;
}

// out = a b.
void multiply(int64_t rows, int64_t columns, Rows a, Rows b, Rows out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *first = a.from(r).data, *second = b.from(r).data;
    float* product = out.from(r).data;
    for (int64_t i = 0; i < columns; ++i) product[i] = first[i] * second[i];
  }
}

Attributed by_tiles(
    const Perceptron& net, const SweepPlan& plan, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h,
    at::IntArrayRef keep_g) {
  const int64_t batch = x.size(0), last = net.layers(), inputs = net.width(0);
  const at::Tensor attribution = u.defined() ? at::empty({batch, inputs}, x.options()) : at::empty({0}, x.options());
  Attributed found{at::empty({batch, net.width(last)}, x.options()), attribution, {}, {}, {}};
  for (int64_t l = 1; l < last; ++l) {
    found.bits.push_back(at::empty({batch, words_of(net.width(l))}, x.options().dtype(at::kInt)));
  }
  Tensors hs = kept_by_layer(net, keep_h, x, found.h), gs = kept_by_layer(net, keep_g, x, found.g);
  hs.push_back(found.y);
  const LayerRange all{1, last};
  for_tiles(
      net, plan, all, u.defined() ? all : LayerRange{},
      [&](const TileSweeps& sweeps, int64_t, int64_t begin, int64_t end) {
        const int64_t rows = end - begin;
        Rows h = sweeps.load(x, begin, rows, sweeps.buffer(0));
        for (int64_t l = 1; l <= last; ++l) {
          const Rows out = sweeps.place(hs[l], begin, sweeps.buffer(l));
          sweeps.forward(l, rows, h, out, mask_rows(found.bits, l, begin));
          sweeps.store(out, hs[l], begin, rows);
          h = out;
        }
        if (!u.defined()) return;
        Rows g = sweeps.load(u, begin, rows, sweeps.buffer(last));
        for (int64_t l = last; l >= 1; --l) {
          const Rows out = sweeps.place(gs[l - 1], begin, sweeps.buffer(l - 1));
          sweeps.cotangent(l, rows, g, out, mask_rows(found.bits, l - 1, begin));
          sweeps.store(out, gs[l - 1], begin, rows);
          g = out;
        }
        const Rows a = sweeps.place(found.attribution, begin, sweeps.partner());
        multiply(rows, inputs, sweeps.load(x, begin, rows, sweeps.spare()), g, a);
        sweeps.store(a, found.attribution, begin, rows);
      });
  return found;
}

}  // namespace

Attributed attribute_perceptron(
    const Perceptron& net, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const PlainDispatch plain;
  const SweepPlan plan = net.plan(x.size(0));
  if (!plan.tiles) return by_layers(net, x, u, keep_h, keep_g);
  return by_tiles(net, plan, row_major(x), u.defined() ? row_major(u) : u, keep_h, keep_g);
}

}  // namespace xattr
