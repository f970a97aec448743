// xattr::mlp_attribute_backward on the CPU: the cotangent sweep of the task, the tangent sweep of the attribution, and
// the weight gradients of both.
#include <torch/library.h>

#include "cpu/gemm.h"
#include "cpu/layer_sweeps.h"
#include "cpu/micro_kernel.h"
#include "cpu/tile_sweeps.h"

namespace xattr {

namespace {

using Tensors = std::vector<at::Tensor>;

// The arguments. Lists by layer have an entry for each, undefined where the layer is not trained or the chain absent.
struct Chains {
  at::Tensor v, delta;  // where they start; undefined where absent
  Tensors bits, g, h;
  std::vector<bool> trained;
  int64_t up, down;  // the tangent sweep reaches the output of layer `up`, the cotangent sweep the input of `down`
};

// What the sweeps make: gradients by layer, and the ends that were asked for.
struct Found {
  Tensors gradients;
  at::Tensor v, delta;
};

void by_layers(const Perceptron& net, const Chains& chains, Found& found) {
  at::Tensor delta = chains.delta, v = chains.v;
  std::vector<bool> begun(net.layers() + 1);
  for (int64_t l = net.layers(); delta.defined() && l >= 1; --l) {
    if (chains.trained[l]) {
      found.gradients[l] = transposed_product(delta, chains.h[l]);
      begun[l] = true;
    }
    if (l < chains.down) break;
    delta = cotangent_of(net, l, delta, chains.bits);
  }
  if (found.delta.defined()) found.delta = delta;
  for (int64_t l = 1; v.defined() && l <= net.layers(); ++l) {
    if (chains.trained[l]) {
      at::Tensor& gradient = found.gradients[l];
      gradient = begun[l] ? gradient.add_(transposed_product(chains.g[l], v)) : transposed_product(chains.g[l], v);
    }
    if (l > chains.up) break;
    v = tangent_of(net, l, v, chains.bits);
  }
  if (found.v.defined()) found.v = v;
}

// One thread's sums: into the results themselves for the first, into memory of their own for the others.
struct Sums {
  std::vector<float*> gradients;  // by layer
  std::vector<bool> begun;
};

void tile(
    const Perceptron& net, const Chains& chains, const TileSweeps& sweeps, int64_t begin, int64_t rows, Sums& sums,
    const Found& found) {
  const auto add = [&](int64_t l, Rows g, Rows v) {
    sweeps.gradient(l, rows, g, v, sums.gradients[l], sums.begun[l]);
    sums.begun[l] = true;
  };
  if (chains.delta.defined()) {
    Rows delta = rows_of(chains.delta).from(begin);
    for (int64_t l = net.layers(); l >= 1; --l) {
      if (chains.trained[l]) add(l, delta, rows_of(chains.h[l]).from(begin));
      if (l < chains.down) break;
      const Rows out = l == 1 && found.delta.defined() ? rows_of(found.delta).from(begin) : sweeps.buffer(l);
      sweeps.cotangent(l, rows, delta, out, mask_rows(chains.bits, l - 1, begin));
      delta = out;
    }
  }
  if (chains.v.defined()) {
    Rows v = rows_of(chains.v).from(begin);
    for (int64_t l = 1; l <= net.layers(); ++l) {
      if (chains.trained[l]) add(l, rows_of(chains.g[l]).from(begin), v);
      if (l > chains.up) break;
      const Rows out = l == net.layers() ? rows_of(found.v).from(begin) : sweeps.buffer(l);
      sweeps.tangent(l, rows, v, out, mask_rows(chains.bits, l, begin));
      v = out;
    }
  }
}

void by_tiles(const Perceptron& net, const Chains& chains, int64_t rows, Found& found) {
  const TilePlan plan(rows);
  std::vector<int64_t> places(net.layers() + 2);  // of the layers' gradients, laid end to end
  for (int64_t l = 1; l <= net.layers(); ++l) {
    places[l + 1] = places[l] + (chains.trained[l] ? net.weight(l).numel() : 0);
    if (chains.trained[l]) found.gradients[l] = at::empty(net.weight(l).sizes(), net.weight(l).options());
  }
  const int64_t total = places.back();
  const at::Tensor others = at::empty({plan.threads - 1, total}, net.weights[0].options());
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    const TileSweeps sweeps(net, plan.height, chains.v.defined() ? chains.up : 0);
    for (int64_t thread = first_thread; thread < end_thread; ++thread) {
      Sums sums{std::vector<float*>(net.layers() + 1), std::vector<bool>(net.layers() + 1)};
      for (int64_t l = 1; l <= net.layers(); ++l) {
        if (!chains.trained[l]) continue;
        sums.gradients[l] = thread == 0 ? found.gradients[l].mutable_data_ptr<float>()
                                        : others.mutable_data_ptr<float>() + (thread - 1) * total + places[l];
      }
      plan.for_tiles(
          thread, [&](int64_t begin, int64_t end) { tile(net, chains, sweeps, begin, end - begin, sums, found); });
    }
  });
  if (plan.threads == 1) return;
  at::parallel_for(0, total, divide_up(total, plan.threads), [&](int64_t first, int64_t last) {
    for (int64_t l = 1; l <= net.layers(); ++l) {
      const int64_t begin = std::max(first, places[l]), end = std::min(last, places[l + 1]);
      if (begin >= end) continue;
      float* sum = found.gradients[l].mutable_data_ptr<float>() - places[l];
      for (int64_t thread = 1; thread < plan.threads; ++thread) {
        const float* other = others.const_data_ptr<float>() + (thread - 1) * total;
        for (int64_t i = begin; i < end; ++i) sum[i] += other[i];
      }
    }
  });
}

// A list by layer from one by trained layer.
Tensors by_layer(
    const char* op, const char* name, at::TensorList given, at::IntArrayRef trained, const Perceptron& net,
    int64_t rows, int64_t below) {
  TORCH_CHECK_VALUE(
      given.size() == trained.size(), "xattr::", op, ": `", name, "` has ", given.size(), " tensors; wanted ",
      trained.size(), ", one for each trained layer");
  Tensors found(net.layers() + 1);
  for (size_t i = 0; i < trained.size(); ++i) {
    check_matrix(op, name, given[i], net, rows, net.width(trained[i] - below));
    found[trained[i]] = row_major(given[i]);
  }
  return found;
}

}  // namespace

std::tuple<Tensors, at::Tensor, at::Tensor> mlp_attribute_backward(
    const std::optional<at::Tensor>& v, const std::optional<at::Tensor>& delta, at::TensorList weights,
    at::ArrayRef<double> slopes, at::TensorList bits, at::TensorList g, at::TensorList h, at::IntArrayRef trained,
    bool output_tangent, bool input_cotangent) {
  const char* op = "mlp_attribute_backward";
  TORCH_CHECK_VALUE(v || delta, "xattr::", op, ": `v` and `delta` are both None; wanted one chain at least");
  const at::Tensor& like = v ? *v : *delta;
  check_values(op, v ? "v" : "delta", like);
  const Perceptron net = checked_perceptron(op, like, weights, slopes);
  const int64_t rows = like.size(0), last = net.layers();
  check_masks(op, bits, net, rows);
  check_layers(op, "trained", trained, 1, last);
  TORCH_CHECK_VALUE(
      (v || !output_tangent) && (delta || !input_cotangent), "xattr::", op,
      ": the end of a chain was asked for that was not given");
  const PlainDispatch plain;
  Chains chains{{}, {}, {}, Tensors(last + 1), Tensors(last + 1), std::vector<bool>(last + 1), 0, last + 1};
  for (const at::Tensor& mask : bits) chains.bits.push_back(mask.contiguous());
  Found found{Tensors(last + 1), {}, {}};
  for (const int64_t l : trained) chains.trained[l] = true;
  if (v) {
    check_matrix(op, "v", *v, net, rows, net.width(0));
    chains.v = row_major(*v);
    chains.g = by_layer(op, "g", g, trained, net, rows, 0);
    chains.up = output_tangent ? last : (trained.empty() ? 0 : trained.back() - 1);
    if (output_tangent) found.v = at::empty({rows, net.width(last)}, v->options());
  }
  if (delta) {
    check_matrix(op, "delta", *delta, net, rows, net.width(last));
    chains.delta = row_major(*delta);
    chains.h = by_layer(op, "h", h, trained, net, rows, 1);
    chains.down = input_cotangent ? 1 : (trained.empty() ? last + 1 : trained.front() + 1);
    if (input_cotangent) found.delta = at::empty({rows, net.width(0)}, delta->options());
  }
  if (sweeps_by_tiles(net, rows)) {
    by_tiles(net, chains, rows, found);
  } else {
    by_layers(net, chains, found);
  }
  Tensors gradients;
  for (const int64_t l : trained) gradients.push_back(found.gradients[l]);
  const auto none = [&] {
    return at::empty({0}, like.options());
  };
  return {gradients, found.v.defined() ? found.v : none(), found.delta.defined() ? found.delta : none()};
}

TORCH_LIBRARY_IMPL(xattr, CPU, m) {
  m.impl("mlp_attribute_backward", mlp_attribute_backward);
}

}  // namespace xattr
