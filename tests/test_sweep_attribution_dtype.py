"""An attribution in another precision than the task: what it leaves alone, and how far it may be off."""

import re
from statistics import median

import pytest
import torch
from helpers import relative_error
from torch import Tensor, nn

import xattr_cuda as xa
from xattr_cuda.bench.cases import small_vgg

BF16 = torch.bfloat16
LOW = (torch.bfloat16, torch.float16)
by_low = pytest.mark.parametrize("low", LOW, ids=lambda dtype: str(dtype).removeprefix("torch."))


def images(*layers: nn.Module) -> nn.Module:
    """A network for images [3, 16, 16] with every kind of residual."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1, bias=False), xa.nn.BatchScale2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.PReLU(16), nn.MaxPool2d(2, return_indices=False)),
        *(nn.AvgPool2d(2), *layers, nn.Flatten(), nn.Linear(64, 3, bias=False)),
    )


NETWORKS = {
    "one output": (lambda: xa.models.xmlp([30, 64, 64, 1]), (30,), None),
    "many outputs": (lambda: xa.models.xmlp([30, 64, 64, 3], activation=nn.PReLU), (30,), 1),
    "an image": (images, (3, 16, 16), 1),
    "a vector of space": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3, bias=False),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(4),
            nn.Flatten(),
            nn.Linear(32, 3, bias=False),
        ),
        (3, 20),
        1,
    ),
}
by_network = pytest.mark.parametrize("network", NETWORKS)


def drawn(network: str, batch: int = 24) -> tuple[nn.Module, nn.Module, Tensor, int | None]:
    """(model, the same in float64, x, target)."""
    build, sample, target = NETWORKS[network]
    model, exact = build(), build().double()
    exact.load_state_dict(model.state_dict())
    return model, exact, torch.randn(batch, *sample), target


def gradients(total: Tensor, model: nn.Module) -> Tensor:
    """The gradients of all parameters, one after the other, in float64."""
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.double().flatten() for g in found])


@by_network
def test_the_task_keeps_its_precision(network):
    _, exact, x, target = drawn(network)
    wide = x.double()

    def task(result):
        return result.output.sin().sum() + 0 * result.attribution.sum()

    want, got = xa.attribute(exact, wide, target), xa.attribute(exact, wide, target, attribution_dtype=torch.float32)
    torch.testing.assert_close(got.output, want.output, rtol=1e-12, atol=1e-12)
    assert relative_error(gradients(task(got), exact), gradients(task(want), exact)) < 1e-12
    assert 1e-9 < relative_error(got.attribution, want.attribution) < 1e-5, "not in float32"


@by_low
@by_network
def test_the_error_is_within_twice_that_of_double_backward_in_the_lower_dtype(network, low):
    ratios = []
    for _ in range(3):
        model, exact, x, target = drawn(network)
        for m in (model, exact):
            m.eval()
        narrow = NETWORKS[network][0]().to(low).eval()
        narrow.load_state_dict(model.state_dict())

        def measured(m, x, target=target, **options):
            a = xa.attribute(m, x, target, **options).attribution
            return a.detach(), gradients(a.double().square().sum(), m)

        truth = measured(exact, x.double())
        found = measured(model, x, attribution_dtype=low)
        plain = measured(narrow, x.to(low), engine="autograd")
        assert found[0].dtype == x.dtype
        ratios.append(
            [relative_error(f, t) / relative_error(p, t) for f, p, t in zip(found, plain, truth, strict=True)]
        )
    for what, of_draws in zip(("attribution", "gradients"), zip(*ratios, strict=True), strict=True):
        assert median(of_draws) <= 2, f"{what}: errors over those of PyTorch: {of_draws}"


@pytest.mark.parametrize(
    ("build", "sample", "target", "limits"),
    [
        (lambda: xa.models.xmlp([118, 512, 128, 32, 1]), (100, 118), None, (0.011, 0.03)),
        (lambda: small_vgg(torch.float32), (3, 3, 32, 32), 1, (0.014, 0.08)),
    ],
    ids=["the paper's", "a small VGG"],
)
def test_documented_errors_of_bf16_hold(build, sample, target, limits):
    """Twice the figures of precision.py."""
    model, x = build(), torch.randn(sample)
    exact = xa.models.xmlp([118, 512, 128, 32, 1], dtype=torch.float64) if target is None else small_vgg(torch.float64)
    exact.load_state_dict(model.state_dict())
    found = []
    for m, inputs, options in ((model, x, {"attribution_dtype": BF16}), (exact, x.double(), {})):
        a = xa.attribute(m, inputs, target, **options).attribution
        found.append((a, gradients(xa.priors.l1(a), m)))
    for got, want, limit in zip(*found, limits, strict=True):
        assert relative_error(got, want) < limit


@by_network
def test_a_gradient_is_that_of_both_chains(network):
    _, exact, x, _ = drawn(network)
    u = torch.randn_like(exact(x.double()))

    def step(**options):
        leaf, weights = x.double().requires_grad_(), u.clone().requires_grad_()
        output, a = xa.attribute(exact, leaf, cotangent=weights, **options)
        total = output.sin().sum() + a.sin().sum()
        wanted = [*exact.parameters(), leaf, weights]
        return [a.detach(), *torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)]

    exact.eval()
    for got, want in zip(step(attribution_dtype=torch.float32), step(engine="autograd"), strict=True):
        assert got.dtype == torch.float64
        assert relative_error(got, want) < 1e-5


@by_network
@pytest.mark.parametrize("rows", [None, torch.tensor([3, 1]), slice(0, 0)])
def test_a_loss_is_attributed_likewise(network, rows):
    _, exact, x, _ = drawn(network)
    exact.eval()

    def step(**options):
        leaf = x.double().requires_grad_()
        loss, output, a = xa.attribute_loss(
            exact, leaf, lambda y: y.square().mean() + y.sin().sum(), rows=rows, **options
        )
        total = 2 * loss + output.cos().sum() + a.sin().sum()
        return [loss.detach(), a.detach(), *torch.autograd.grad(total, [*exact.parameters(), leaf])]

    for got, want in zip(step(attribution_dtype=torch.float32), step(engine="autograd"), strict=True):
        assert got.shape == want.shape
        assert relative_error(got, want) < 1e-5


@by_network
def test_the_dtype_of_the_model_changes_nothing(network):
    model, _, x, target = drawn(network)
    model.eval()
    for options in ({"attribution_dtype": torch.float32}, {"attribution_dtype": None}):
        for got, want in zip(xa.attribute(model, x, target, **options), xa.attribute(model, x, target), strict=True):
            assert torch.equal(got, want)
            assert type(got.grad_fn) is type(want.grad_fn)


def test_a_step_without_gradients_has_the_same_numbers():
    for network in NETWORKS:
        model, _, x, target = drawn(network)
        model.eval()
        want = xa.attribute(model, x, target, attribution_dtype=BF16)
        with torch.no_grad():
            got = xa.attribute(model, x, target, attribution_dtype=BF16)
            loss = xa.attribute_loss(model, x, lambda y: y.square().sum(), attribution_dtype=BF16)
        torch.testing.assert_close(got.attribution, want.attribution)
        assert not any(t.requires_grad for t in (*got, *loss))
        assert got.attribution.dtype == loss.attribution.dtype == torch.float32


def test_moments_of_the_batch_are_taken_once():
    models = [images() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(8, 3, 16, 16)
    xa.attribute(models[0], x, 0)
    xa.attribute(models[1], x, 0, attribution_dtype=BF16)
    for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True):
        assert torch.equal(a, b)


def test_dropout_drops_the_same_in_both_chains():
    model, x = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False)), torch.randn(4, 64)
    output, a = xa.attribute(model, x, attribution_dtype=BF16)
    torch.testing.assert_close(a.sum(1, keepdim=True), output, rtol=0.05, atol=0.05)  # completeness
    assert 0 < int((a == 0).sum()) < a.numel()


def test_under_autocast_an_attribution_may_be_wider_than_the_task():
    model, exact, x, target = drawn("an image")
    model.eval()
    exact.eval()
    truth = xa.attribute(exact, x.double(), target).attribution
    errors = []
    for dtype in (None, torch.float32):
        with torch.autocast("cpu", BF16):
            output, a = xa.attribute(model, x, target, attribution_dtype=dtype)
        assert output.dtype == BF16
        errors.append(relative_error(a, truth))
        (output.float().square().mean() + a.float().square().mean()).backward()
    assert a.dtype == torch.float32
    assert errors[1] < errors[0] + 0.05
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_channels_last_is_kept():
    model = images().to(memory_format=torch.channels_last).eval()
    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    a = xa.attribute(model, x, 1, attribution_dtype=BF16).attribution
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(a, xa.attribute(model, x, 1).attribution) < 0.05


@pytest.mark.parametrize("loss", [False, True], ids=["attribute", "attribute_loss"])
def test_a_compiled_step_gives_every_parameter_its_gradient(loss):
    model, _, x, _ = drawn("an image", batch=6)
    model.eval()
    sweep = xa.Sweep(model, (lambda y: y.square().mean()) if loss else None)

    def of(x, rows):
        if loss:
            value, _, a = sweep(x, rows=rows, attribution_dtype=BF16)
        else:
            output, a = sweep(x, 1, rows=rows, attribution_dtype=BF16)
            value = output.sin().sum()
        return value + a.square().sum()

    torch.compiler.reset()
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    for rows in (None, slice(0, 2)):
        torch.testing.assert_close(
            gradients(compiled(x, rows), model), gradients(of(x, rows), model), rtol=1e-3, atol=1e-3
        )


def test_what_cannot_be_is_refused():
    model, x = xa.models.xmlp([6, 8, 1]), torch.randn(12, 6)
    for dtype in (torch.int32, torch.complex64):
        with pytest.raises(
            ValueError, match=re.escape(f"`attribution_dtype` is {dtype}; wanted one of torch.bfloat16")
        ):
            xa.attribute(model, x, attribution_dtype=dtype)
    with pytest.raises(ValueError, match="wants engine='sweep'"):
        xa.attribute(model, x, attribution_dtype=BF16, engine="autograd")
    with pytest.raises(ValueError, match="wants engine='sweep'"):
        xa.attribute_loss(model, x, torch.mean, attribution_dtype=BF16, engine="autograd")
