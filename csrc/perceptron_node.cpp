#include "perceptron_node.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>

#include "cpu/perceptron_sweeps.h"

namespace xattr {

namespace {

using torch::autograd::Edge;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;
using Layers = std::vector<int64_t>;

// The operators, by way of the dispatcher: the fastest kernel that the device has.
using Attribute = std::tuple<at::Tensor, at::Tensor, Tensors, Tensors, Tensors>(
    const at::Tensor&, at::TensorList, at::ArrayRef<double>, const Optional&, at::IntArrayRef, at::IntArrayRef);
using AttributeBackward = std::tuple<Tensors, at::Tensor, at::Tensor>(
    const Optional&, const Optional&, const Optional&, const Optional&, const Optional&, at::TensorList,
    at::ArrayRef<double>, at::TensorList, at::TensorList, at::TensorList, at::IntArrayRef, bool, bool);
using MatmulMask = at::Tensor(const at::Tensor&, const at::Tensor&, const Optional&, const Optional&);

template <typename Signature>
c10::TypedOperatorHandle<Signature> operator_of(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Optional given(const at::Tensor& t) {
  return t.defined() ? Optional(t) : std::nullopt;
}

at::Tensor sum_of(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() ? a : b;
  return at::add(a, b);
}

at::Tensor product_of(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined()) return a;  // an absent factor is one
  return at::mul(a, b);
}

// A node owned as this version of PyTorch owns them.
template <typename T, typename... Args>
auto make_node(Args&&... args) {
  using Pointer = decltype(Edge::function);
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) {
    return std::shared_ptr<T>(new T(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<T>(std::forward<Args>(args)...);
  }
}

// What the backward pass needs, as it is saved and restored. Undefined where it needs nothing.
struct Kept {
  at::Tensor x, scale, u, g0;
  Tensors weights, bits, h, g;

  template <typename Visit>
  void each(Visit visit) {
    for (at::Tensor* t : {&x, &scale, &u, &g0}) visit(*t);
    for (Tensors* tensors : {&weights, &bits, &h, &g}) {
      for (at::Tensor& t : *tensors) visit(t);
    }
  }
};

}  // namespace

// (x, cotangent, loss, weights ...) -> (output, attribution, loss), or to the output alone where nothing is attributed.
struct PerceptronBackward : public Node {
  using Node::Node;
  enum Input : size_t { kX, kCotangent, kLoss, kWeights };

  void save(Kept&& kept) {
    shape_ = Kept{
        {},
        {},
        {},
        {},
        Tensors(kept.weights.size()),
        Tensors(kept.bits.size()),
        Tensors(kept.h.size()),
        Tensors(kept.g.size())};
    kept.each([&](const at::Tensor& t) { saved_.emplace_back(t, /*is_output=*/false); });
  }

  variable_list apply(variable_list&& sent) override;

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& saved : saved_) saved.reset_data();
  }

  std::string name() const override { return "PerceptronBackward"; }

  std::vector<double> slopes;
  Layers trained, kept_layers;
  bool one_output = false, attributes_loss = false;

 private:
  Kept restore() const {
    Kept kept = shape_;
    auto saved = saved_.begin();
    kept.each([&](at::Tensor& t) { t = (saved++)->unpack(); });
    return kept;
  }

  Layers wanted_layers() const {
    Layers wanted;
    for (const int64_t l : trained) {
      if (task_should_compute_output(kWeights + l - 1)) wanted.push_back(l);
    }
    return wanted;
  }

  Gradients sweep(
      Kept& kept, const Layers& wanted, at::Tensor&& a, const at::Tensor& s, at::Tensor&& delta, bool own,
      bool output_tangent, bool input_cotangent) const;

  Kept shape_;
  std::vector<SavedVariable> saved_;
};

namespace {

// The operator's way, which other devices and dispatch modes see.
Gradients through_the_dispatcher(const Perceptron& net, Chains& chains, const Layers& wanted) {
  static const auto matmul_mask = operator_of<MatmulMask>("xattr::matmul_mask");
  static const auto backward = operator_of<AttributeBackward>("xattr::mlp_attribute_backward");
  Tensors g, h;
  for (const int64_t l : wanted) {
    if (chains.x.defined() && !chains.g[l].defined()) {
      const double slope = net.slopes[l - 1];
      const Optional slopes = slope == 0 ? Optional() : Optional(at::ones({1}, chains.x.options()).mul_(slope));
      chains.g[l] = matmul_mask.call(chains.g[l + 1], net.weight(l + 1), chains.bits[l - 1], slopes);
    }
    if (chains.x.defined()) g.push_back(chains.g[l]);
    if (chains.delta.defined()) h.push_back(chains.h[l]);
  }
  auto [weights, v, delta] = backward.call(
      given(chains.x), given(chains.a), given(chains.s), given(chains.c), given(chains.delta), net.weights, net.slopes,
      chains.bits, g, h, wanted, chains.output_tangent, chains.input_cotangent);
  Gradients found{Tensors(net.layers() + 1), std::move(v), std::move(delta)};
  for (size_t i = 0; i < wanted.size(); ++i) found.weights[wanted[i]] = std::move(weights[i]);
  return found;
}

}  // namespace

Gradients PerceptronBackward::sweep(
    Kept& kept, const Layers& wanted, at::Tensor&& a, const at::Tensor& s, at::Tensor&& delta, bool own,
    bool output_tangent, bool input_cotangent) const {
  const Perceptron net{std::move(kept.weights), slopes};
  Chains chains(net, output_tangent, input_cotangent, wanted);
  chains.bits = std::move(kept.bits);
  if (own) {
    chains.x = kept.x;
    chains.a = std::move(a);
    chains.s = s;
    chains.c = kept.scale;
    for (size_t i = 0; i < kept_layers.size(); ++i) {
      if (chains.trained[kept_layers[i]]) chains.g[kept_layers[i]] = std::move(kept.g[i]);
    }
    chains.g[net.layers()] = kept.u;
  }
  if (delta.defined()) {
    chains.delta = std::move(delta);
    size_t i = 0;
    for (const int64_t l : trained) {
      const at::Tensor h = l == 1 ? kept.x : std::move(kept.h[i++]);
      if (chains.trained[l]) chains.h[l] = h;
    }
  }
  kept = Kept();
  if (net.weights[0].is_cpu() && !c10::impl::dispatch_mode_enabled())
    return perceptron_gradients(net, std::move(chains));
  return through_the_dispatcher(net, chains, wanted);
}

variable_list PerceptronBackward::apply(variable_list&& sent) {
  TORCH_CHECK(
      !at::GradMode::is_enabled(),
      "xattr_cuda: the sweeps are differentiable once, and create_graph=True asks for more; for second order use "
      "xa.attribute(..., engine='autograd')");
  const bool keep = torch::autograd::get_current_graph_task_keep_graph();
  Kept kept = [&] {
    const std::lock_guard<std::mutex> lock(mutex_);
    return restore();
  }();
  sent.resize(3);                  // nothing is sent into what was not returned
  if (!keep) release_variables();  // now what is kept goes as soon as it has been used
  variable_list found(kWeights + kept.weights.size());
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::Tensor dy = std::move(sent[0]), a = std::move(sent[1]);
    const at::Tensor d_loss = std::move(sent[2]);
    const bool needs_x = task_should_compute_output(kX), needs_cotangent = task_should_compute_output(kCotangent);
    const Layers wanted = wanted_layers();

    at::Tensor s;
    if (one_output) s = sum_of(std::exchange(dy, {}), d_loss.defined() ? product_of(d_loss, kept.scale) : d_loss);
    const at::Tensor g0 = kept.g0;
    const bool attributed = a.defined() || s.defined();
    if (needs_x && attributed) found[kX] = at::mul(g0, sum_of(a.defined() ? product_of(a, kept.scale) : a, s));
    if (needs_cotangent && one_output && a.defined()) {
      found[kCotangent] = at::mul(at::mul(a, kept.x), g0).sum(1, /*keepdim=*/true);
    }
    if (task_should_compute_output(kLoss)) found[kLoss] = d_loss;

    const bool output_tangent = needs_cotangent && !one_output && attributed;
    const bool input_cotangent = needs_x && dy.defined();
    const bool own = attributed && (!wanted.empty() || output_tangent);
    if (wanted.empty() && !input_cotangent) dy.reset();
    if (own || dy.defined()) {
      if (own && !kept.u.defined()) kept.u = at::ones_like(kept.scale);  // what carries a scale starts from ones
      Gradients gradients = sweep(kept, wanted, std::move(a), s, std::move(dy), own, output_tangent, input_cotangent);
      for (const int64_t l : wanted) found[kWeights + l - 1] = std::move(gradients.weights[l]);
      if (output_tangent) found[kCotangent] = std::move(gradients.v);
      if (input_cotangent) found[kX] = sum_of(gradients.delta, found[kX]);
    }
  }
  return found;
}

namespace {

const auto& attribute() {
  static const auto handle = operator_of<Attribute>("xattr::mlp_attribute");
  return handle;
}

torch::autograd::edge_list edges_of(
    const at::Tensor& x, const at::Tensor& cotangent, const at::Tensor& loss, const Tensors& weights) {
  torch::autograd::edge_list edges = torch::autograd::collect_next_edges(x, cotangent, loss);
  for (const at::Tensor& weight : weights) edges.push_back(torch::autograd::impl::gradient_edge(weight));
  return edges;
}

}  // namespace

PerceptronStep sweep_perceptron(
    const at::Tensor& x, Tensors weights, std::vector<double> slopes, const Optional& u, bool needs_grad,
    bool needs_g0) {
  PerceptronStep step{std::move(weights), std::move(slopes)};
  const auto last = static_cast<int64_t>(step.weights.size());
  step.one_output = step.weights.back().size(0) == 1;
  Layers widths{x.size(1)}, keep_h;
  if (needs_g0) step.kept.push_back(0);
  for (const at::Tensor& weight : step.weights) widths.push_back(weight.size(0));
  const bool repeats_last = x.is_cpu() && SweepPlan(widths, x.size(0), x.scalar_type()).repeats_last;
  for (int64_t l = 1; needs_grad && l <= last; ++l) {
    if (!step.weights[l - 1].requires_grad()) continue;
    step.trained.push_back(l);
    if (!step.one_output && l > 1) keep_h.push_back(l - 1);
    if (l < last - (repeats_last ? 1 : 0)) step.kept.push_back(l);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  step.u = u ? *u : at::ones({x.size(0), widths.back()}, x.options());
  std::tie(step.y, step.unscaled, step.bits, step.h, step.g) =
      attribute().call(x, step.weights, step.slopes, step.u, keep_h, step.kept);
  return step;
}

at::Tensor plain_perceptron(const at::Tensor& x, Tensors weights, std::vector<double> slopes, bool needs_grad) {
  Layers trained, keep_h;
  for (int64_t l = 1; needs_grad && l <= static_cast<int64_t>(weights.size()); ++l) {
    if (!weights[l - 1].requires_grad()) continue;
    trained.push_back(l);
    if (l > 1) keep_h.push_back(l - 1);
  }
  at::Tensor y;
  Kept kept;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    at::Tensor attribution;
    Tensors g;
    std::tie(y, attribution, kept.bits, kept.h, g) =
        attribute().call(x, weights, slopes, std::nullopt, keep_h, Layers());
  }
  if (!needs_grad) return y;
  auto node = make_node<PerceptronBackward>(edges_of(x, {}, {}, weights));
  if (!trained.empty() && trained.front() == 1) kept.x = x;
  kept.weights = std::move(weights);
  node->save(std::move(kept));
  node->slopes = std::move(slopes);
  node->trained = std::move(trained);
  torch::autograd::set_history(y, node);
  return y;
}

std::tuple<at::Tensor, at::Tensor, Optional> perceptron_results(
    PerceptronStep& step, const at::Tensor& x, const Optional& cotangent, const Optional& loss) {
  torch::autograd::edge_list edges =
      edges_of(x, cotangent.value_or(at::Tensor()), loss.value_or(at::Tensor()), step.weights);
  const bool needs_cotangent = edges[PerceptronBackward::kCotangent].is_valid();
  auto node = make_node<PerceptronBackward>(std::move(edges));

  Kept kept;
  if (step.one_output && cotangent) kept.scale = *cotangent;
  if (!step.trained.empty() || needs_cotangent) kept.x = x;
  if (!kept.scale.defined() || step.u.stride(0) == 0) kept.u = step.u;
  if (!step.kept.empty() && step.kept.front() == 0) {
    kept.g0 = std::move(step.g.front());
    step.g.erase(step.g.begin());
    step.kept.erase(step.kept.begin());
  }
  kept.weights = step.weights;
  kept.bits = std::move(step.bits);
  kept.h = std::move(step.h);
  kept.g = std::move(step.g);
  Optional through;
  at::Tensor attribution = step.unscaled;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (kept.scale.defined()) attribution = at::mul(step.unscaled, kept.scale);
    if (loss) through = loss->clone();
  }
  node->save(std::move(kept));
  node->slopes = step.slopes;
  node->trained = step.trained;
  node->kept_layers = step.kept;
  node->one_output = step.one_output;
  torch::autograd::set_history(step.y, node);
  torch::autograd::set_history(attribution, node);
  torch::autograd::set_history(through.value_or(at::Tensor()), node);
  return {step.y, attribution, through};
}

}  // namespace xattr
