// xattr::mlp_attribute on the CPU: the forward and the attribution sweep of a perceptron.
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include "cpu/gemm.h"
#include "cpu/layer_sweeps.h"
#include "cpu/tile_sweeps.h"

namespace xattr {

namespace {

using Tensors = std::vector<at::Tensor>;

// What the sweeps make. Lists of values have an entry for each layer's output and the input, undefined where it is not
// kept.
struct Found {
  at::Tensor y, attribution;
  Tensors bits, h, g;
};

void by_layers(const Perceptron& net, const at::Tensor& x, const at::Tensor& u, Found& found) {
  const int64_t last = net.layers();
  at::Tensor h = x;
  for (int64_t l = 1; l < last; ++l) {
    at::Tensor bits;
    std::tie(h, bits) = linear_relu_mask(h, net.weight(l), slope_of(net, l));
    found.bits[l - 1] = bits;
    if (found.h[l].defined()) found.h[l] = h;
  }
  found.y = matmul_mask(h, net.weight(last).t(), std::nullopt, std::nullopt);
  at::Tensor g = u;
  for (int64_t l = last; l >= 1; --l) {
    g = cotangent_of(net, l, g, found.bits);
    if (found.g[l - 1].defined()) found.g[l - 1] = g;
  }
  found.attribution = x.mul(g);
}

void by_tiles(const Perceptron& net, const at::Tensor& x, const at::Tensor& u, Found& found) {
  const int64_t last = net.layers(), inputs = net.width(0);
  const TilePlan plan(x.size(0));
  const Rows xs = rows_of(x), us = rows_of(u), ys = rows_of(found.y), attributions = rows_of(found.attribution);
  const auto place = [](const at::Tensor& kept, int64_t row, Rows otherwise) {
    return kept.defined() ? rows_of(kept).from(row) : otherwise;
  };
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    const TileSweeps sweeps(net, plan.height, last);
    for (int64_t thread = first_thread; thread < end_thread; ++thread) {
      plan.for_tiles(thread, [&](int64_t begin, int64_t end) {
        const int64_t rows = end - begin;
        Rows h = xs.from(begin);
        for (int64_t l = 1; l < last; ++l) {
          const Rows out = place(found.h[l], begin, sweeps.buffer(l));
          sweeps.forward(l, rows, h, out, mask_rows(found.bits, l, begin));
          h = out;
        }
        sweeps.forward(last, rows, h, ys.from(begin), nullptr);
        Rows g = us.from(begin);
        for (int64_t l = last; l >= 1; --l) {
          const Rows out = place(found.g[l - 1], begin, sweeps.buffer(l));
          sweeps.cotangent(l, rows, g, out, mask_rows(found.bits, l - 1, begin));
          g = out;
        }
        for (int64_t r = 0; r < rows; ++r) {
          const float *row = xs.from(begin + r).data, *g0 = g.from(r).data;
          float* a = attributions.from(begin + r).data;
          for (int64_t i = 0; i < inputs; ++i) a[i] = row[i] * g0[i];
        }
      });
    }
  });
}

// The kept values in the order asked for.
Tensors chosen(const Tensors& values, at::IntArrayRef layers) {
  Tensors found;
  for (const int64_t l : layers) found.push_back(values[l]);
  return found;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, Tensors, Tensors, Tensors> mlp_attribute(
    const at::Tensor& x, at::TensorList weights, at::ArrayRef<double> slopes, const at::Tensor& u,
    at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const char* op = "mlp_attribute";
  check_values(op, "x", x);
  const Perceptron net = checked_perceptron(op, x, weights, slopes);
  check_matrix(op, "x", x, net, x.size(0), net.width(0));
  check_matrix(op, "u", u, net, x.size(0), net.width(net.layers()));
  check_layers(op, "keep_h", keep_h, 1, net.layers() - 1);
  check_layers(op, "keep_g", keep_g, 0, net.layers() - 1);
  const PlainDispatch plain;
  const int64_t rows = x.size(0);
  const auto empty = [&](int64_t l) {
    return at::empty({rows, net.width(l)}, x.options());
  };
  Found found{empty(net.layers()), empty(0), {}, Tensors(net.layers()), Tensors(net.layers())};
  for (int64_t l = 1; l < net.layers(); ++l) {
    found.bits.push_back(at::empty({rows, words_of(net.width(l))}, x.options().dtype(at::kInt)));
  }
  for (const int64_t l : keep_h) found.h[l] = empty(l);
  for (const int64_t l : keep_g) found.g[l] = empty(l);
  if (sweeps_by_tiles(net, rows)) {
    by_tiles(net, row_major(x), row_major(u), found);
  } else {
    by_layers(net, x, u, found);
  }
  return {found.y, found.attribution, found.bits, chosen(found.h, keep_h), chosen(found.g, keep_g)};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("mlp_attribute", mlp_attribute);
}

}  // namespace xattr
