"""What training jobs wrap around a step: compilation, autocast, checkpoints, functional calls, data parallelism."""

import copy

import gloo
import graphs
import pytest
import torch
import torch._dynamo
from helpers import relative_error
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import xattr_cuda as xa

LOSSES = pytest.mark.parametrize("loss", [False, True], ids=["attribute", "attribute_loss"])


def network(dtype=torch.float32):
    """A residual network with PReLU, a scale and BatchScale, an input and labels."""
    model, (x,) = graphs.build("residual", batch=6, dtype=dtype)
    model.relu = nn.PReLU().to(dtype)
    model.first = nn.Sequential(model.first, xa.nn.BatchScale2d(6)).to(dtype)
    return model, x, torch.randint(4, (6,))


def step_of(sweep, loss, reduction="mean"):
    """A training step's loss as a function of a batch."""

    def step(x, labels):
        if loss:
            value, _, attribution = sweep(x, labels)
        else:
            output, attribution = sweep(x, labels)
            value = F.cross_entropy(
                output.float() if output.dtype != torch.float64 else output, labels, reduction=reduction
            )
        return value + getattr(attribution.abs(), reduction)()

    return step


def sweep_of(model, loss, reduction="mean"):
    return xa.Sweep(model, nn.CrossEntropyLoss(reduction=reduction) if loss else None)


def gradients(model, step, *batch):
    model.zero_grad(set_to_none=True)
    step(*batch).backward()
    assert all(p.grad is not None for p in model.parameters()), "a parameter has no gradient"
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(got, want, tolerance):
    assert got.keys() == want.keys()
    for name in want:
        error = relative_error(got[name], want[name])
        assert error <= tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


def assert_same_buffers(got, want):
    for (name, a), b in zip(got.named_buffers(), want.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # by the compiler itself
@LOSSES
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_a_compiled_step_gives_every_parameter_its_gradient(loss, compiler):
    model, x, labels = network(torch.float64)
    twin = copy.deepcopy(model)
    want = gradients(twin, step_of(sweep_of(twin, loss), loss), x, labels)
    torch.compiler.reset()
    compiled = torch.compile(step_of(sweep_of(model, loss), loss), fullgraph=True, backend=compiler)
    assert_same(gradients(model, compiled, x, labels), want, 1e-10)
    assert_same_buffers(model, twin)


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="this PyTorch cannot trace a backward pass"
)
@LOSSES
def test_a_step_and_its_backward_pass_in_one_graph_give_every_parameter_its_gradient(loss):
    model, x, labels = network(torch.float64)
    twin = copy.deepcopy(model)
    want = gradients(twin, step_of(sweep_of(twin, loss), loss), x, labels)
    step = step_of(sweep_of(model, loss), loss)

    def whole(x, labels):
        step(x, labels).backward()

    torch.compiler.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        torch.compile(whole, fullgraph=True, backend="aot_eager")(x, labels)
    assert_same({name: p.grad for name, p in model.named_parameters()}, want, 1e-10)


def test_a_compiled_step_follows_the_model():
    """Frozen layers, the mode, settings and batch sizes that change between calls."""
    model, x, labels = network(torch.float64)
    model.skip = nn.Sequential(model.skip, nn.Dropout(0.5))
    sweep = sweep_of(model, False)
    torch.compiler.reset()
    compiled = torch.compile(step_of(sweep, False), fullgraph=True, backend="aot_eager")
    changes = [
        lambda: model.eval(),
        lambda: model.stem.requires_grad_(False),
        lambda: setattr(model.down, "stride", (1, 1)) or setattr(model.skip[0], "stride", (1, 1)),
        lambda: model.first[1].train() and setattr(model.first[1], "eps", 1.0),
        lambda: model.stem.requires_grad_(True),
    ]
    for change in changes:
        change()
        twin = copy.deepcopy(model)
        for size in (6, 5, 2):
            batch = x[:size], labels[:size]
            found = []
            for who, step in ((twin, step_of(sweep_of(twin, False), False)), (model, compiled)):
                who.zero_grad(set_to_none=True)
                step(*batch).backward()
                found.append({n: p.grad for n, p in who.named_parameters() if p.grad is not None})
            assert_same(found[1], found[0], 1e-10)


def test_hooks_are_refused_in_a_compiled_step_too():
    model, x, labels = network(torch.float64)
    model.down.register_forward_hook(lambda *args: None)
    torch.compiler.reset()
    with pytest.raises(Exception, match="hooks"):
        torch.compile(step_of(sweep_of(model, False), False), fullgraph=True, backend="aot_eager")(x, labels)


@LOSSES
def test_a_whole_compiled_step_with_its_optimiser_trains_as_an_eager_one(loss):
    model, x, labels = network(torch.float64)
    twin = copy.deepcopy(model)
    torch.compiler.reset()
    for who, wrap in ((twin, lambda f: f), (model, lambda f: torch.compile(f, backend="aot_eager"))):
        step, optimiser = wrap(step_of(sweep_of(who, loss), loss)), torch.optim.Adam(who.parameters(), 1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            step(x, labels).backward()
            optimiser.step()
    for (name, got), want in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, want, msg=lambda message, name=name: f"{name}: {message}")


@LOSSES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast_with_a_scaled_loss_has_the_gradients_of_eager_autocast(loss, dtype, compiled, monkeypatch):
    model, x, labels = network()
    twin = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    torch.compiler.reset()

    def scaled(step):
        def run(x, labels):
            with torch.autocast("cpu", dtype):
                return step(x, labels)

        run = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled and step is not slow else run
        return lambda *batch: scaler.scale(run(*batch))

    def slow(x, labels):
        if loss:
            value, _, attribution = xa.attribute_loss(twin, x, nn.CrossEntropyLoss(), labels, engine="autograd")
        else:
            output, attribution = xa.attribute(twin, x, labels, engine="autograd")
            value = F.cross_entropy(output.float(), labels)
        return value + attribution.abs().mean()

    got = gradients(model, scaled(step_of(sweep_of(model, loss), loss)), x, labels)
    want = gradients(twin, scaled(slow), x, labels)
    # Together: a single slope is a sum that cancels. test_sweep_precision.py bounds the error of every tensor.
    together = ({"all": torch.cat([g.flatten() for g in gradients.values()])} for gradients in (got, want))
    assert_same(*together, 32 * torch.finfo(dtype).eps)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_checkpointed_step_has_the_same_gradients():
    model, x, labels = network(torch.float64)
    model.first = model.first[0]  # without running statistics, which a second forward pass would update again
    step = step_of(sweep_of(model, False), False)
    want = gradients(model, step, x, labels)
    got = gradients(model, lambda *batch: checkpoint(step, *batch, use_reentrant=False), x, labels)
    assert_same(got, want, 1e-12)


def test_gradients_accumulate_over_parts_of_a_batch():
    model, x, labels = network(torch.float64)
    model.eval()
    step = step_of(sweep_of(model, False), False)
    want = gradients(model, step, x, labels)
    got = gradients(model, lambda x, y: (step(x[:3], y[:3]) + step(x[3:], y[3:])) / 2, x, labels)
    assert_same(got, want, 1e-12)


def test_running_statistics_may_move_between_a_forward_and_its_backward():
    model, x, labels = network(torch.float64)
    step = step_of(sweep_of(model, False), False)
    first = step(x, labels)
    step(x, labels)
    first.backward()


def test_a_functional_call_uses_the_parameters_that_it_is_given():
    model, x, labels = network(torch.float64)
    sweep = sweep_of(model, False)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in sweep.named_parameters()}
    output, attribution = torch.func.functional_call(sweep, given, (x, labels))
    loss = F.cross_entropy(output, labels) + attribution.abs().mean()
    got = dict(zip(given, torch.autograd.grad(loss, list(given.values())), strict=True))
    twin = copy.deepcopy(sweep)
    twin.load_state_dict({**twin.state_dict(), **{name: p.detach() for name, p in given.items()}})
    assert_same(got, gradients(twin, step_of(twin, False), x, labels), 1e-12)


def _replica(rank, folder, loss):
    """One process of two: each sees half of the batch, and hands in its gradients."""
    gloo.join(rank, 2, folder)
    state = torch.load(f"{folder}/model.pt", weights_only=False)
    model, x, labels = state["model"], state["x"].chunk(2)[rank], state["labels"].chunk(2)[rank]
    step = step_of(DistributedDataParallel(sweep_of(model, loss, "sum")), loss, "sum")
    gloo.hand_in(gradients(model, step, x, labels), rank, 2, folder)


@LOSSES
def test_two_processes_have_the_gradients_of_one(loss, tmp_path):
    model, (x,) = graphs.build("a layer called three times", batch=8)
    model.second = graphs.linear(3, 4).double()
    model.run = _twice
    labels = torch.randint(4, (8,))
    torch.save({"model": model, "x": x, "labels": labels}, tmp_path / "model.pt")
    found = gloo.found_by(_replica, 2, tmp_path, loss, seconds=180)
    want = gradients(model, step_of(sweep_of(model, loss, "sum"), loss, "sum"), x, labels)
    for each in found:  # the mean over the processes
        assert_same({name.removeprefix("module."): 2 * g for name, g in each.items()}, want, 1e-10)


def _twice(m, x):
    return m.second(m.head(m.middle(m.act(m.middle(x))) + x).relu())
