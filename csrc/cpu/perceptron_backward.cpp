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

// The matrices of a tile of rows. s and c are of fp32.
struct Tile {
  const Perceptron& net;
  const Chains& chains;
  const TileSweeps& sweeps;
  int64_t begin, rows;

  Rows load(const at::Tensor& t, Rows buffer) const { return sweeps.load(t, begin, rows, buffer); }

  // v_0 = (c a + s) x.
  Rows start() const {
    const int64_t inputs = net.width(0);
    const Rows xs = load(chains.x, sweeps.spare()), out = sweeps.buffer(0);
    const Rows as = chains.a.defined() ? load(chains.a, sweeps.partner()) : Rows{};
    for (int64_t r = 0; r < rows; ++r) {
      const float* x = xs.from(r).data;
      const float c = chains.c.defined() ? *rows_of(chains.c).from(begin + r).data : 1;
      const float s = chains.s.defined() ? *rows_of(chains.s).from(begin + r).data : 0;
      float* v = out.from(r).data;
      if (as.data) {
        const float* a = as.from(r).data;
        for (int64_t i = 0; i < inputs; ++i) v[i] = (c * a[i] + s) * x[i];
      } else {
        for (int64_t i = 0; i < inputs; ++i) v[i] = s * x[i];
      }
    }
    return out;
  }

  Rows cotangent_at(int64_t l) const {
    if (chains.g[l].defined()) return load(chains.g[l], sweeps.spare());
    const Rows above = load(chains.g[l + 1], sweeps.partner());
    sweeps.cotangent(l + 1, rows, above, sweeps.spare(), mask_rows(chains.bits, l, begin));
    return sweeps.spare();
  }
};

// Both sweeps on one tile. add(l, g, v) is called for every pair of a trained layer.
template <typename Add>
void sweep_tile(const Tile& tile, const Gradients& found, Add add) {
  const auto& [net, chains, sweeps, begin, rows] = tile;
  const int64_t last = net.layers();
  if (chains.delta.defined()) {
    Rows delta = tile.load(chains.delta, sweeps.buffer(last));
    for (int64_t l = last; l >= 1; --l) {
      if (chains.trained[l]) add(l, delta, tile.load(chains.h[l], sweeps.spare()));
      if (l < chains.down) break;
      const at::Tensor end = l == 1 ? found.delta : at::Tensor();
      const Rows out = sweeps.place(end, begin, sweeps.buffer(l - 1));
      sweeps.cotangent(l, rows, delta, out, mask_rows(chains.bits, l - 1, begin));
      sweeps.store(out, end, begin, rows);
      delta = out;
    }
  }
  if (chains.x.defined()) {
    Rows v = tile.start();
    for (int64_t l = 1; l <= last; ++l) {
      if (chains.trained[l]) add(l, tile.cotangent_at(l), v);
      if (l > chains.up) break;
      const at::Tensor end = l == last ? found.v : at::Tensor();
      const Rows out = sweeps.place(end, begin, sweeps.buffer(l));
      sweeps.tangent(l, rows, v, out, mask_rows(chains.bits, l, begin));
      sweeps.store(out, end, begin, rows);
      v = out;
    }
  }
}

// The sums of fp32 that each thread makes of the gradients of its tiles. The first thread sums into the gradients where
// they are of fp32.
class Sums {
 public:
  Sums(const Perceptron& net, const SweepPlan& plan, const std::vector<bool>& trained)
      : threads_(plan.threads),
        firsts_(net.layers() + 1),
        places_(net.layers() + 2),
        begun_(plan.threads, std::vector<bool>(net.layers() + 1)) {
    const auto options = net.weights[0].options().dtype(at::kFloat);
    for (int64_t l = 1; l <= net.layers(); ++l) {
      places_[l + 1] = places_[l] + (trained[l] ? net.weight(l).numel() : 0);
      if (trained[l]) firsts_[l] = at::empty(net.weight(l).sizes(), options);
    }
    others_ = at::empty({threads_ - 1, places_.back()}, options);
  }

  // (where a thread sums up layer l, whether it has begun to).
  std::pair<float*, bool> of(int64_t thread, int64_t l) {
    const bool begun = begun_[thread][l];
    begun_[thread][l] = true;
    return {thread == 0 ? firsts_[l].mutable_data_ptr<float>() : other(thread) + places_[l], begun};
  }

  // The sum of all threads, by layer.
  Tensors total(at::ScalarType dtype) {
    const int64_t size = places_.back();
    at::parallel_for(0, threads_ > 1 ? size : 0, divide_up(size, threads_), [&](int64_t first, int64_t last) {
      for (size_t l = 1; l < firsts_.size(); ++l) {
        const int64_t begin = std::max(first, places_[l]), end = std::min(last, places_[l + 1]);
        if (begin >= end) continue;
        float* sum = firsts_[l].mutable_data_ptr<float>() - places_[l];
        for (int64_t thread = 1; thread < threads_; ++thread) {
          const float* more = other(thread);
          for (int64_t i = begin; i < end; ++i) sum[i] += more[i];
        }
      }
    });
    for (at::Tensor& t : firsts_) {
      if (t.defined()) t = t.to(dtype);
    }
    return std::move(firsts_);
  }

 private:
  float* other(int64_t thread) { return others_.mutable_data_ptr<float>() + (thread - 1) * places_.back(); }

  int64_t threads_;
  Tensors firsts_;               // by layer: the first thread's
  std::vector<int64_t> places_;  // by layer: where the sums of the other threads begin, laid end to end
  std::vector<std::vector<bool>> begun_;
  at::Tensor others_;
};

// Many rows: each thread adds up the gradients of its tiles while they are in cache; the sums are added in the end.
void by_summed_gradients(const Perceptron& net, const SweepPlan& plan, const Chains& chains, Gradients& found) {
  Sums sums(net, plan, chains.trained);
  for_tiles(
      net, plan, chains.ups(), chains.downs(),
      [&](const TileSweeps& sweeps, int64_t thread, int64_t begin, int64_t end) {
        sweep_tile(Tile{net, chains, sweeps, begin, end - begin}, found, [&](int64_t l, Rows g, Rows v) {
          const auto [sum, begun] = sums.of(thread, l);
          sweeps.gradient(l, end - begin, g, v, 0, net.width(l), sum, begun);
        });
      });
  found.weights = sums.total(net.weights[0].scalar_type());
}

// A layer's gradient (+)= g.T v over the whole batch, of which each thread makes some rows, beside map(sweeps, begin,
// rows), which takes the thread's rows of the batch to the next layer. up, down: the layer, where the map needs it.
template <typename Map>
void gradient_and_map(
    const Perceptron& net, const SweepPlan& plan, int64_t l, const at::Tensor& g, const at::Tensor& v, Gradients& found,
    LayerRange up, LayerRange down, Map map) {
  at::Tensor& gradient = found.weights[l];
  const bool trained = g.defined(), accumulate = gradient.defined();
  if (trained && !accumulate) gradient = at::empty(net.weight(l).sizes(), net.weight(l).options());
  const int64_t n = net.width(l), share = round_up(divide_up(n, plan.threads), kVector);
  at::parallel_for(0, plan.threads, 1, [&](int64_t first_thread, int64_t end_thread) {
    const TileSweeps sweeps(net, plan, up, down);
    if (trained) {
      const int64_t first = std::min(n, first_thread * share), count = std::min(n, end_thread * share) - first;
      sweeps.gradient(
          l, plan.rows, rows_of(g), rows_of(v), first, count, gradient.mutable_data_ptr<float>(), accumulate);
    }
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
    const at::Tensor out = l < chains.down ? at::Tensor() : l == 1 ? found.delta : empty(l - 1);
    const at::Tensor h = std::move(chains.h[l]), trained_delta = chains.trained[l] ? delta : at::Tensor();
    const LayerRange down = out.defined() ? LayerRange{l, l} : LayerRange{};
    gradient_and_map(
        net, plan, l, trained_delta, h, found, {}, down, [&](const TileSweeps& sweeps, int64_t begin, int64_t rows) {
          if (!out.defined()) return;
          const int32_t* bits = mask_rows(chains.bits, l - 1, begin);
          sweeps.cotangent(l, rows, rows_of(delta).from(begin), rows_of(out).from(begin), bits);
        });
    delta = out;
  }
  if (!chains.x.defined()) return;
  at::Tensor v = start_of(chains);
  for (int64_t l = 1; v.defined() && l <= net.layers(); ++l) {
    const at::Tensor out = l > chains.up ? at::Tensor() : l == net.layers() ? found.v : empty(l);
    const at::Tensor g = chains.trained[l] ? take_cotangent(net, chains, l) : at::Tensor();
    const LayerRange up = out.defined() ? LayerRange{l, l} : LayerRange{};
    gradient_and_map(net, plan, l, g, v, found, up, {}, [&](const TileSweeps& sweeps, int64_t begin, int64_t rows) {
      if (!out.defined()) return;
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
  for (at::Tensor* t : {&chains.x, &chains.a, &chains.delta}) {
    if (t->defined()) *t = row_major(*t);
  }
  for (at::Tensor* t : {&chains.s, &chains.c}) {
    if (t->defined()) *t = row_major(t->to(at::kFloat));
  }
  for (Tensors* tensors : {&chains.g, &chains.h}) {
    for (at::Tensor& t : *tensors) {
      if (t.defined()) t = row_major(t);
    }
  }
  if (plan.sums_gradients) {
    by_summed_gradients(net, plan, chains, found);
  } else {
    by_whole_gradients(net, plan, chains, found);
  }
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
