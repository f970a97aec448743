// The cotangent sweep of the task, the tangent sweep of the attribution, and the weight gradients of both.
#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/mul.h>

#include <utility>

#include "cpu/layer_sweeps.h"
#include "cpu/perceptron_sweeps.h"
#include "cpu/tile_sweeps.h"

namespace xattr {

namespace {

// c a + s, what multiplies x where the own chain starts.
at::Tensor factor_of(const Chains& chains) {
  if (!chains.a.defined()) return chains.s;
  const at::Tensor a = chains.c.defined() ? at::mul(chains.a, chains.c) : chains.a;
  return chains.s.defined() ? at::add(a, chains.s) : a;
}

// The start of the tangents, [B, N_0]. Nothing else needs the gradient of the attribution.
at::Tensor start_of(Chains& chains) {
  const at::Tensor v = at::mul(chains.x, factor_of(chains));
  chains.a.reset();
  return v;
}

// g at the output of layer l, swept again where it was not kept.
at::Tensor take_cotangent(const Perceptron& net, Chains& chains, int64_t l) {
  at::Tensor g = std::move(chains.g[l]);
  return g.defined() ? g : cotangent_of(net, l + 1, chains.g[l + 1], chains.bits);
}

Gradients by_layers(const Perceptron& net, Chains&& chains) {
  Gradients found{Tensors(net.layers() + 1), {}, {}};
  at::Tensor delta = std::move(chains.delta);
  for (int64_t l = net.layers(); delta.defined() && l >= 1; --l) {
    if (chains.trained[l]) found.weights[l] = transposed_product(delta, std::exchange(chains.h[l], {}));
    if (l < chains.down) break;
    delta = cotangent_of(net, l, delta, chains.bits);
  }
  if (chains.input_cotangent) found.delta = std::move(delta);
  delta.reset();
  if (!chains.x.defined()) return found;
  at::Tensor v = start_of(chains);
  for (int64_t l = 1; l <= net.layers(); ++l) {
    if (chains.trained[l]) {
      const at::Tensor g = take_cotangent(net, chains, l);
      at::Tensor& gradient = found.weights[l];
      if (gradient.defined()) {
        add_transposed_product(gradient, g, v);
      } else {
        gradient = transposed_product(g, v);
      }
    }
    if (l > chains.up) break;
    v = tangent_of(net, l, v, chains.bits);
  }
  if (chains.output_tangent) found.v = std::move(v);
  return found;
}

// The matrices of a tile of rows.
struct Tile {
  const Perceptron& net;
  const Chains& chains;
  const TileSweeps& sweeps;
  int64_t begin, rows;

  Rows rows_from(const at::Tensor& t) const { return rows_of(t).from(begin); }

  // v_0 = (c a + s) x.
  Rows start() const {
    const int64_t inputs = net.width(0);
    const Rows out = sweeps.buffer(0);
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = rows_of(chains.x).from(begin + r).data;
      const float c = chains.c.defined() ? *rows_of(chains.c).from(begin + r).data : 1;
      const float s = chains.s.defined() ? *rows_of(chains.s).from(begin + r).data : 0;
      float* v = out.from(r).data;
      if (chains.a.defined()) {
        const float* a = rows_of(chains.a).from(begin + r).data;
        for (int64_t i = 0; i < inputs; ++i) v[i] = (c * a[i] + s) * x[i];
      } else {
        for (int64_t i = 0; i < inputs; ++i) v[i] = s * x[i];
      }
    }
    return out;
  }

  Rows cotangent_at(int64_t l) const {
    if (chains.g[l].defined()) return rows_from(chains.g[l]);
    sweeps.cotangent(l + 1, rows, rows_from(chains.g[l + 1]), sweeps.spare(), mask_rows(chains.bits, l, begin));
    return sweeps.spare();
  }
};

// Both sweeps on one tile. add(l, g, v) is called for every pair of a trained layer.
template <typename Add>
void sweep_tile(const Tile& tile, const Gradients& found, Add add) {
  const Chains& chains = tile.chains;
  const int64_t last = tile.net.layers();
  const auto place = [&](const at::Tensor& end, int64_t l) {
    return end.defined() ? tile.rows_from(end) : tile.sweeps.buffer(l);
  };
  if (chains.delta.defined()) {
    Rows delta = tile.rows_from(chains.delta);
    for (int64_t l = last; l >= 1; --l) {
      if (chains.trained[l]) add(l, delta, tile.rows_from(chains.h[l]));
      if (l < chains.down) break;
      const Rows out = place(l == 1 ? found.delta : at::Tensor(), l - 1);
      tile.sweeps.cotangent(l, tile.rows, delta, out, mask_rows(chains.bits, l - 1, tile.begin));
      delta = out;
    }
  }
  if (chains.x.defined()) {
    Rows v = tile.start();
    for (int64_t l = 1; l <= last; ++l) {
      if (chains.trained[l]) add(l, tile.cotangent_at(l), v);
      if (l > chains.up) break;
      const Rows out = place(l == last ? found.v : at::Tensor(), l);
      tile.sweeps.tangent(l, tile.rows, v, out, mask_rows(chains.bits, l, tile.begin));
      v = out;
    }
  }
}

// The last layer whose transposed weights the sweeps need.
int64_t up_of(const Chains& chains) {
  return chains.x.defined() ? chains.up : 0;
}

// Many rows: each thread adds up the gradients of its tiles while they are in cache; the sums are added in the end.
void by_summed_gradients(const Perceptron& net, const SweepPlan& plan, const Chains& chains, Gradients& found) {
  std::vector<int64_t> places(net.layers() + 2);  // of the layers' gradients, laid end to end
  for (int64_t l = 1; l <= net.layers(); ++l) {
    places[l + 1] = places[l] + (chains.trained[l] ? net.weight(l).numel() : 0);
  }
  const int64_t total = places.back();
  const at::Tensor others = at::empty({plan.threads - 1, total}, net.weights[0].options());
  std::vector<std::vector<bool>> begun(plan.threads, std::vector<bool>(net.layers() + 1));
  for_tiles(net, plan, 1, up_of(chains), [&](const TileSweeps& sweeps, int64_t thread, int64_t begin, int64_t end) {
    float* own = thread == 0 ? nullptr : others.mutable_data_ptr<float>() + (thread - 1) * total;
    sweep_tile(Tile{net, chains, sweeps, begin, end - begin}, found, [&](int64_t l, Rows g, Rows v) {
      float* sum = own ? own + places[l] : found.weights[l].mutable_data_ptr<float>();
      sweeps.gradient(l, end - begin, g, v, sum, begun[thread][l]);
      begun[thread][l] = true;
    });
  });
  if (plan.threads == 1) return;
  at::parallel_for(0, total, divide_up(total, plan.threads), [&](int64_t first, int64_t last) {
    for (int64_t l = 1; l <= net.layers(); ++l) {
      const int64_t begin = std::max(first, places[l]), end = std::min(last, places[l + 1]);
      if (begin >= end) continue;
      float* sum = found.weights[l].mutable_data_ptr<float>() - places[l];
      for (int64_t thread = 1; thread < plan.threads; ++thread) {
        const float* other = others.const_data_ptr<float>() + (thread - 1) * total;
        for (int64_t i = begin; i < end; ++i) sum[i] += other[i];
      }
    }
  });
}

// A layer's gradient (+)= g.T v over the whole batch, of which each thread makes some rows, and then its map of `in`
// where `map` is to be applied: map(sweeps, begin, rows) for the thread's rows.
template <typename Map>
void gradient_and_map(
    const Perceptron& net, const SweepPlan& plan, int64_t l, const at::Tensor& g, const at::Tensor& v, Gradients& found,
    bool trained, int64_t up, Map map) {
  at::Tensor& gradient = found.weights[l];
  const bool accumulate = gradient.defined();
  if (trained && !accumulate) gradient = at::empty(net.weight(l).sizes(), net.weight(l).options());
  const int64_t n = net.width(l), share = round_up(divide_up(n, plan.threads), kVector);
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    if (trained) {
      const int64_t first = std::min(n, first_thread * share), count = std::min(n, end_thread * share) - first;
      add_gradient(net, l, plan.rows, rows_of(g), rows_of(v), first, count, rows_of(gradient).data, accumulate);
    }
    const TileSweeps sweeps(net, plan, l, up);
    for (int64_t thread = first_thread; thread < end_thread; ++thread) {
      map(sweeps, plan.begin(thread), plan.begin(thread + 1) - plan.begin(thread));
    }
  });
}

// Few rows: each layer's gradient, and its map of the values to the next layer, before the next layer's.
void by_whole_gradients(const Perceptron& net, const SweepPlan& plan, Chains& chains, Gradients& found) {
  const auto empty = [&](int64_t l) {
    return at::empty({plan.rows, net.width(l)}, net.weights[0].options());
  };
  at::Tensor delta = std::move(chains.delta);
  for (int64_t l = net.layers(); delta.defined() && l >= 1; --l) {
    const bool goes_on = l >= chains.down;
    const at::Tensor out = !goes_on ? at::Tensor() : l == 1 ? found.delta : empty(l - 1);
    const at::Tensor h = std::move(chains.h[l]);
    gradient_and_map(
        net, plan, l, delta, h, found, chains.trained[l], 0,
        [&](const TileSweeps& sweeps, int64_t begin, int64_t rows) {
          if (!goes_on) return;
          const int32_t* bits = mask_rows(chains.bits, l - 1, begin);
          sweeps.cotangent(l, rows, rows_of(delta).from(begin), rows_of(out).from(begin), bits);
        });
    delta = out;
  }
  if (!chains.x.defined()) return;
  at::Tensor v = start_of(chains);
  for (int64_t l = 1; v.defined() && l <= net.layers(); ++l) {
    const bool goes_on = l <= chains.up;
    const at::Tensor out = !goes_on ? at::Tensor() : l == net.layers() ? found.v : empty(l);
    const at::Tensor g = chains.trained[l] ? take_cotangent(net, chains, l) : at::Tensor();
    gradient_and_map(
        net, plan, l, g, v, found, chains.trained[l], goes_on ? l : 0,
        [&](const TileSweeps& sweeps, int64_t begin, int64_t rows) {
          if (!goes_on) return;
          const int32_t* bits = mask_rows(chains.bits, l, begin);
          sweeps.tangent(l, rows, rows_of(v).from(begin), rows_of(out).from(begin), bits);
        });
    v = out;
  }
}

Gradients by_tiles(const Perceptron& net, const SweepPlan& plan, Chains&& chains) {
  const auto end = [&](bool wanted, int64_t l) {
    return wanted ? at::empty({plan.rows, net.width(l)}, net.weights[0].options()) : at::Tensor();
  };
  Gradients found{Tensors(net.layers() + 1), end(chains.output_tangent, net.layers()), end(chains.input_cotangent, 0)};
  for (at::Tensor* t : {&chains.x, &chains.a, &chains.s, &chains.c, &chains.delta}) {
    if (t->defined()) *t = row_major(*t);
  }
  for (Tensors* tensors : {&chains.g, &chains.h}) {
    for (at::Tensor& t : *tensors) {
      if (t.defined()) t = row_major(t);
    }
  }
  if (!plan.sums_gradients) {
    by_whole_gradients(net, plan, chains, found);
    return found;
  }
  for (int64_t l = 1; l <= net.layers(); ++l) {
    if (chains.trained[l]) found.weights[l] = at::empty(net.weight(l).sizes(), net.weight(l).options());
  }
  by_summed_gradients(net, plan, chains, found);
  return found;
}

}  // namespace

Chains::Chains(const Perceptron& net, bool output_tangent, bool input_cotangent, at::IntArrayRef layers)
    : g(net.layers() + 1),
      h(net.layers() + 1),
      trained(net.layers() + 1),
      output_tangent(output_tangent),
      input_cotangent(input_cotangent) {
  for (const int64_t l : layers) trained[l] = true;
  up = output_tangent ? net.layers() : layers.empty() ? 0 : layers.back() - 1;
  down = input_cotangent ? 1 : layers.empty() ? net.layers() + 1 : layers.front() + 1;
}

Gradients perceptron_gradients(const Perceptron& net, Chains&& chains) {
  const PlainDispatch plain;
  const SweepPlan plan = net.plan(chains.x.defined() ? chains.x.size(0) : chains.delta.size(0));
  return plan.tiles ? by_tiles(net, plan, std::move(chains)) : by_layers(net, std::move(chains));
}

}  // namespace xattr
