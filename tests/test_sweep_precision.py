"""Precision of a step below float64: within twice the error of PyTorch's eager double backward at the same dtype."""

from statistics import median

import pytest
import torch
from cases import PAPER
from helpers import (
    curved_loss,
    eager_attribute,
    eager_attribute_loss,
    relative_error,
    run_step,
)
from networks import build
from torch import nn
from torch.utils.checkpoint import checkpoint

import xattr_cuda as xa

LOW = (torch.float32, torch.bfloat16, torch.float16)
by_dtype = pytest.mark.parametrize("dtype", LOW, ids=lambda dtype: str(dtype).removeprefix("torch."))


def squares(output, attribution):
    return output.square().sum() + attribution.square().sum()


NETWORKS = ["one output", "many outputs", "PReLU by channel", "a sequence with PReLU by channel", "an image", "dropout"]


DRAWS = 8  # of network and input: the error of a small tensor is a matter of luck, that of many is not


def assert_steps_within_twice(got, plain, truth, what, dtype=None):
    """In the norm of each tensor, and in the median of the draws.

    A single draw is a matter of luck: rounding may move a pre-activation across zero in one way of computing and not
    in another. dtype: of the arithmetic, where it is not that of the results.
    """
    for name in got[0]:
        ratios = []
        for g, p, t in zip(got, plain, truth, strict=True):
            assert g[name].dtype == p[name].dtype, name
            ulp = torch.finfo(dtype or g[name].dtype).eps * t[name].norm()
            limit = 2 * (p[name].double() - t[name]).norm() + ulp
            ratios.append(float((g[name].double() - t[name]).norm() / limit.clamp(min=1e-300)))
        assert median(ratios) <= 1, f"{what}: {name}: errors over twice those of PyTorch: {ratios}"


def three_steps(run, methods, network, dtype):
    """Steps of one model and input by run(attribute, model, x): swept, eager, and eager in float64; DRAWS of each."""
    swept, eager = methods
    networks = [build(network, batch=33, dtype=dtype) for _ in range(DRAWS)]  # all before a step reseeds torch
    draws = []
    for model, x in networks:
        exact = build(network)[0]
        exact.load_state_dict(model.state_dict())
        model.eval()
        exact.eval()
        draws.append((run(swept, model, x), run(eager, model, x), run(eager, exact, x.double())))
    return [list(steps) for steps in zip(*draws, strict=True)]


@by_dtype
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_is_within_twice_the_error_of_double_backward(network, dtype, backend):
    u = torch.randn_like(build(network, batch=33)[0](build(network, batch=33)[1]).detach()).to(dtype)

    def run(attribute, model, x):
        return run_step(attribute, model, x, cotangent=u.to(x.dtype), loss=squares)

    assert_steps_within_twice(*three_steps(run, (xa.attribute, eager_attribute), network, dtype), network)


@by_dtype
def test_the_network_of_the_paper_is_within_twice_the_error_of_double_backward(dtype, backend):
    model = xa.models.xmlp(PAPER.widths, dtype=dtype)
    exact = xa.models.xmlp(PAPER.widths, dtype=torch.float64)
    exact.load_state_dict(model.state_dict())
    x = torch.randn(PAPER.batch, PAPER.widths[0]).to(dtype)

    def loss(output, attribution):
        return nn.functional.softplus(output).mean() + xa.priors.l2(attribution)

    got, plain = run_step(xa.attribute, model, x, loss=loss), run_step(eager_attribute, model, x, loss=loss)
    truth = run_step(eager_attribute, exact, x.double(), loss=loss)
    assert_steps_within_twice([got], [plain], [truth], "paper")


@by_dtype
@pytest.mark.parametrize("network", ["many outputs", "PReLU by channel"])
def test_an_attributed_loss_is_within_twice_the_error_of_double_backward(network, dtype, backend):
    labels = torch.randint(3, (33,))

    def run(attribute_loss, model, x):
        def attribute(model, x, target, *, cotangent):
            loss, _, attribution = attribute_loss(model, x, nn.functional.cross_entropy, labels)
            return loss, attribution

        return run_step(attribute, model, x, loss=lambda loss, a: loss + a.square().sum())

    steps = three_steps(run, (xa.attribute_loss, eager_attribute_loss), network, dtype)
    assert_steps_within_twice(*steps, network)


@pytest.mark.parametrize("network", ["one output", "many outputs", "PReLU by channel", "a sequence"])
@pytest.mark.parametrize("backward", ["inside", "outside"])
def test_autocast_has_the_dtypes_and_twice_the_error_of_eager_autocast(network, backward, backend):
    u = torch.randn_like(build(network, batch=33)[0](build(network, batch=33)[1]).detach())

    def run(attribute, model, x):
        autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.float32)

        def under_autocast(*args, **kwargs):
            with autocast:
                return attribute(*args, **kwargs)

        if backward == "outside":
            return run_step(under_autocast, model, x, cotangent=u.to(x.dtype))
        with autocast:
            return run_step(attribute, model, x, cotangent=u.to(x.dtype))

    got, plain, truth = three_steps(run, (xa.attribute, eager_attribute), network, torch.float32)
    assert got[0]["output"].dtype == torch.bfloat16 == plain[0]["output"].dtype
    for step in (*got, *plain):
        step.pop("attribution")  # in eager x * gradient is taken in float32, in a sweep in bfloat16
    assert all(g.dtype == torch.float32 for name, g in got[0].items() if name.startswith("gradient"))
    assert_steps_within_twice(got, plain, truth, network, torch.bfloat16)


def test_autocast_of_an_attributed_loss_equals_eager_autocast(backend):
    model, x = build("many outputs", batch=33, dtype=torch.float32)
    labels = torch.randint(3, (33,))
    with torch.autocast(x.device.type, torch.bfloat16):
        eager_loss, eager_output, _ = eager_attribute_loss(
            model, x.clone().requires_grad_(), nn.functional.cross_entropy, labels
        )
        loss, output, attribution = xa.attribute_loss(model, x, nn.functional.cross_entropy, labels)
    assert (loss.dtype, output.dtype) == (eager_loss.dtype, eager_output.dtype)
    assert relative_error(loss, eager_loss) <= torch.finfo(torch.bfloat16).eps
    (loss + attribution.square().sum()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_checkpointing_a_sweep_changes_nothing(backend):
    model, x = build("dropout", dtype=torch.float64)
    sweep, labels = xa.Sweep(model), torch.randint(3, (7,))

    def gradients(call):
        torch.manual_seed(0)
        loss = curved_loss(*call(sweep, x, labels))
        return torch.autograd.grad(loss, list(model.parameters()))

    def checkpointed(*args):
        return checkpoint(*args, use_reentrant=False)

    for got, want in zip(gradients(checkpointed), gradients(lambda f, *args: f(*args)), strict=True):
        assert torch.equal(got, want)
