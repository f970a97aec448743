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
  for (int64_t l = net.layers(); delta.defined() && l >= 1; --l) {
    if (chains.trained[l]) found.gradients[l] = transposed_product(delta, chains.h[l]);
    if (l < chains.down) break;
    delta = cotangent_of(net, l, delta, chains.bits);
  }
  if (found.delta.defined()) found.delta = delta;
  for (int64_t l = 1; v.defined() && l <= net.layers(); ++l) {
    if (chains.trained[l]) {
      at::Tensor& gradient = found.gradients[l];
      const at::Tensor own = transposed_product(chains.g[l], v);
      gradient = gradient.defined() ? gradient.add_(own) : own;
    }
    if (l > chains.up) break;
    v = tangent_of(net, l, v, chains.bits);
  }
  if (found.v.defined()) found.v = v;
}

// What a sweep leaves for gradients that are taken after it, by layer: the tangent at its input, the task's cotangent
// at its output.
struct Kept {
  Tensors v, delta;
};

// Both sweeps on one tile. add(l, g, v) is called for every pair of a trained layer.
template <typename Add>
void sweep_tile(
    const Perceptron& net, const Chains& chains, const TileSweeps& sweeps, int64_t begin, int64_t rows,
    const Kept& kept, const Found& found, Add add) {
  const auto place = [&](const at::Tensor& t, int64_t l) {
    return t.defined() ? rows_of(t).from(begin) : sweeps.buffer(l);
  };
  if (chains.delta.defined()) {
    Rows delta = rows_of(chains.delta).from(begin);
    for (int64_t l = net.layers(); l >= 1; --l) {
      if (chains.trained[l]) add(l, delta, rows_of(chains.h[l]).from(begin));
      if (l < chains.down) break;
      const Rows out = place(l == 1 ? found.delta : kept.delta[l - 1], l);
      sweeps.cotangent(l, rows, delta, out, mask_rows(chains.bits, l - 1, begin));
      delta = out;
    }
  }
  if (chains.v.defined()) {
    Rows v = rows_of(chains.v).from(begin);
    for (int64_t l = 1; l <= net.layers(); ++l) {
      if (chains.trained[l]) add(l, rows_of(chains.g[l]).from(begin), v);
      if (l > chains.up) break;
      const Rows out = place(l == net.layers() ? found.v : kept.v[l + 1], l);
      sweeps.tangent(l, rows, v, out, mask_rows(chains.bits, l, begin));
      v = out;
    }
  }
}

int64_t up_of(const Chains& chains) {
  return chains.v.defined() ? chains.up : 0;
}

// Few rows: sweeps first, then gradients over the whole batch, of which each thread takes a share of the rows.
void by_whole_gradients(const Perceptron& net, const Chains& chains, const TilePlan& plan, Found& found) {
  Kept kept{Tensors(net.layers() + 2), Tensors(net.layers() + 1)};
  for (int64_t l = 1; l <= net.layers(); ++l) {
    if (!chains.trained[l]) continue;
    const auto empty = [&](int64_t width) {
      return at::empty({plan.rows, width}, net.weights[0].options());
    };
    if (chains.v.defined()) kept.v[l] = l == 1 ? chains.v : empty(net.width(l - 1));
    if (chains.delta.defined()) kept.delta[l] = l == net.layers() ? chains.delta : empty(net.width(l));
  }
  for_tiles(net, plan, up_of(chains), [&](const TileSweeps& sweeps, int64_t, int64_t begin, int64_t end) {
    sweep_tile(net, chains, sweeps, begin, end - begin, kept, found, [](int64_t, Rows, Rows) {});
  });
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    for (int64_t l = 1; l <= net.layers(); ++l) {
      if (!chains.trained[l]) continue;
      const int64_t n = net.width(l), share = round_up(divide_up(n, plan.threads), kVector);
      const int64_t first = std::min(n, first_thread * share), count = std::min(n, end_thread * share) - first;
      bool accumulate = false;
      const auto add = [&](const at::Tensor& g, const at::Tensor& v) {
        add_gradient(
            net, l, plan.rows, rows_of(g), rows_of(v), first, count, rows_of(found.gradients[l]).data, accumulate);
        accumulate = true;
      };
      if (chains.delta.defined()) add(kept.delta[l], chains.h[l]);
      if (chains.v.defined()) add(chains.g[l], kept.v[l]);
    }
  });
}

// Many rows: each thread adds up the gradients of its tiles while they are in cache; the sums are added in the end.
void by_summed_gradients(const Perceptron& net, const Chains& chains, const TilePlan& plan, Found& found) {
  const Kept nothing{Tensors(net.layers() + 2), Tensors(net.layers() + 1)};
  std::vector<int64_t> places(net.layers() + 2);  // of the layers' gradients, laid end to end
  for (int64_t l = 1; l <= net.layers(); ++l) {
    places[l + 1] = places[l] + (chains.trained[l] ? net.weight(l).numel() : 0);
  }
  const int64_t total = places.back();
  const at::Tensor others = at::empty({plan.threads - 1, total}, net.weights[0].options());
  std::vector<std::vector<bool>> begun(plan.threads, std::vector<bool>(net.layers() + 1));
  for_tiles(net, plan, up_of(chains), [&](const TileSweeps& sweeps, int64_t thread, int64_t begin, int64_t end) {
    float* own = thread == 0 ? nullptr : others.mutable_data_ptr<float>() + (thread - 1) * total;
    sweep_tile(net, chains, sweeps, begin, end - begin, nothing, found, [&](int64_t l, Rows g, Rows v) {
      float* sum = own ? own + places[l] : found.gradients[l].mutable_data_ptr<float>();
      sweeps.gradient(l, end - begin, g, v, sum, begun[thread][l]);
      begun[thread][l] = true;
    });
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

void by_tiles(const Perceptron& net, const Chains& chains, int64_t rows, Found& found) {
  const TilePlan plan(rows);
  for (int64_t l = 1; l <= net.layers(); ++l) {
    if (chains.trained[l]) found.gradients[l] = at::empty(net.weight(l).sizes(), net.weight(l).options());
  }
  if (plan.threads > 1 && plan.height * plan.threads >= rows) {
    by_whole_gradients(net, chains, plan, found);
  } else {
    by_summed_gradients(net, chains, plan, found);
  }
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
