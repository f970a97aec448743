// Perceptrons layer by layer from C++, in the notation of section 2 of the design.
#include "cuda/perceptron_layers.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>

#include <algorithm>
#include <optional>

namespace xattr {
namespace {

using Optional = std::optional<at::Tensor>;

template <typename Signature>
c10::TypedOperatorHandle<Signature> operator_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Optional slope_of(const Perceptron& net, int64_t l) {
  if (net.slopes[l - 1] == 0) return std::nullopt;
  return at::full({1}, net.slopes[l - 1], net.weight(1).options());
}

// h_l and its mask of z = W_l h_{l-1}.
std::tuple<at::Tensor, at::Tensor> activated(const Perceptron& net, int64_t l, const at::Tensor& z) {
  static const auto relu_mask =
      operator_of<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const Optional&)>("xattr::relu_mask");
  return relu_mask.call(z, slope_of(net, l));
}

// m_l * t.
at::Tensor masked(const Perceptron& net, int64_t l, const at::Tensor& t, const Tensors& bits) {
  static const auto mask_mul =
      operator_of<at::Tensor(const at::Tensor&, const at::Tensor&, const Optional&)>("xattr::mask_mul");
  return mask_mul.call(t, bits[l - 1], slope_of(net, l));
}

// v_0 = (c a + s) x; an absent c is one, an absent a or s zero.
at::Tensor start_of_tangents(const LayerChains& chains) {
  at::Tensor factor = chains.s;
  if (chains.a.defined()) {
    factor = chains.c.defined() ? at::mul(chains.a, chains.c) : chains.a;
    if (chains.s.defined()) factor = at::add(factor, chains.s);
  }
  return at::mul(factor, chains.x);
}

// The gradient of a layer, from the pairs of one chain or of both.
void add_pair(at::Tensor& gradient, const at::Tensor& left, const at::Tensor& right) {
  if (!gradient.defined())
    gradient = at::mm(left.t(), right);
  else if (gradient.scalar_type() == at::kFloat)
    gradient.add_(at::mm(left.t(), right));  // a sum of its own is more exact
  else
    gradient.addmm_(left.t(), right);
}

}  // namespace

Attributed attribute_by_layers(
    const Perceptron& net, const at::Tensor& x, const at::Tensor& u, at::IntArrayRef keep_h, at::IntArrayRef keep_g) {
  const int64_t last = net.layers();
  Tensors h(last), g(last + 1), bits;
  const auto kept = [](at::IntArrayRef layers, int64_t l) {
    return std::find(layers.begin(), layers.end(), l) != layers.end();
  };
  h[0] = x;
  for (int64_t l = 1; l < last; ++l) {
    auto [value, mask] = activated(net, l, at::mm(h[l - 1], net.weight(l).t()));
    h[l] = std::move(value);
    bits.push_back(std::move(mask));
    if (l > 1 && !kept(keep_h, l - 1)) h[l - 1].reset();
  }
  at::Tensor y = at::mm(h[last - 1], net.weight(last).t());
  g[last] = u;
  for (int64_t l = last; l >= 1; --l) {
    const at::Tensor t = at::mm(g[l], net.weight(l));
    g[l - 1] = l > 1 ? masked(net, l - 1, t, bits) : t;
    if (l < last && !kept(keep_g, l)) g[l].reset();
  }
  Attributed found{std::move(y), at::mul(x, g[0]), std::move(bits), {}, {}};
  for (const int64_t l : keep_h) std::get<3>(found).push_back(h[l]);
  for (const int64_t l : keep_g) std::get<4>(found).push_back(g[l]);
  return found;
}

GradientsAndEnds gradients_by_layers(
    const Perceptron& net, const LayerChains& chains, at::IntArrayRef trained, bool output_tangent,
    bool input_cotangent) {
  const int64_t last = net.layers();
  const auto options = net.weight(1).options();
  std::vector<int64_t> place(last + 1, -1);
  for (size_t i = 0; i < trained.size(); ++i) place[trained[i]] = static_cast<int64_t>(i);
  GradientsAndEnds found{Tensors(trained.size()), at::empty({0}, options), at::empty({0}, options)};
  auto& [gradients, v_end, delta_end] = found;
  if (chains.delta.defined()) {
    at::Tensor delta = chains.delta;
    const int64_t lowest = input_cotangent ? 1 : trained.empty() ? last + 1 : trained.front();
    for (int64_t l = last; l >= lowest; --l) {
      if (place[l] >= 0) add_pair(gradients[place[l]], delta, chains.h[place[l]]);
      if (l == lowest && !input_cotangent) break;
      delta = at::mm(delta, net.weight(l));
      if (l > 1) delta = masked(net, l - 1, delta, chains.bits);
    }
    if (input_cotangent) delta_end = delta;
  }
  if (chains.x.defined()) {
    at::Tensor v = start_of_tangents(chains);
    const int64_t highest = output_tangent ? last : trained.empty() ? 0 : trained.back();
    for (int64_t l = 1; l <= highest; ++l) {
      if (place[l] >= 0) add_pair(gradients[place[l]], chains.g[place[l]], v);
      if (l == highest && !output_tangent) break;
      v = at::mm(v, net.weight(l).t());
      if (l < last) v = masked(net, l, v, chains.bits);
    }
    if (output_tangent) v_end = v;
  }
  return found;
}

}  // namespace xattr
