"""Derivatives and registration of the operators: gradcheck, opcheck, and gradients at every dtype."""

import functools

import pytest
import torch
from cases import DEFINITIONS, DTYPES, LAYER_OPS, PRE_ACTIVATIONS, SLOPES, Sample, pack_bits, sample_inputs
from helpers import assert_as_good_as
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import xattr_cuda as xa

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_op = pytest.mark.parametrize("op", LAYER_OPS)

LEADING = {"vector": (), "matrix": (3,), "cube": (2, 2)}


def smooth_args(op, slope, leading=(3,), n=5, k=4):
    """Arguments in float64 whose pre-activations keep away from the kink, so that differences measure derivatives."""

    def draw(*shape):
        t = torch.randn(shape, dtype=torch.float64)
        return (t + 0.2 * t.sign()).requires_grad_()

    if op == "gini":
        return (((torch.randperm(n) + 0.5 * torch.rand(n) + 0.1).double()).requires_grad_(),)
    windows = ((2, 2), (1, 2), (1, 0), (1, 1))
    idx = torch.randint(5, (2, 1, 4, 2)).to(torch.uint8)
    if op == "input_times_gradient":
        shape = (*leading, n)
        return draw(*shape), draw(*shape), None if slope == "no slope" else draw(shape[0])
    if op == "max_pool":
        return torch.randperm(24).double().view(2, 1, 3, 4).requires_grad_(), *windows, False
    if op == "pool_pull":
        return draw(2, 1, 4, 2), idx, (2, 1, 3, 4), *windows
    if op == "pool_push":
        return draw(2, 1, 3, 4), idx, *windows
    if op == "dual_weight_grad":
        return tuple(draw(*(leading or (3,)), width) for width in (n, k, n, k))
    slopes = {"no slope": None, "one slope": draw(1), "slopes": draw(n)}[slope]
    bits = pack_bits(torch.rand(*leading, n) > 0.5)
    while True:
        args = {
            "relu_mask": lambda: (draw(*leading, n), slopes),
            "mask_mul": lambda: (draw(*leading, n), bits, slopes),
            "add_relu_mask": lambda: (draw(*leading, n), draw(*leading, n), slopes),
            "linear_relu_mask": lambda: (draw(*leading, k), draw(n, k), slopes),
            "matmul_mask": lambda: (draw(*leading, k), draw(k, n), bits, slopes),
        }[op]()
        if op not in PRE_ACTIVATIONS or PRE_ACTIVATIONS[op](*args).abs().min() > 1e-2:
            return args


@by_op
@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("leading", LEADING.values(), ids=LEADING.keys())
def test_gradcheck(op, slope, leading, backend):
    if "slope" not in xa.ops.SCHEMAS[op]:
        slope = "no slope"
    assert gradcheck(getattr(xa.ops, op), smooth_args(op, slope, leading))


def test_gini_and_its_gradient_can_be_differentiated_twice(backend):
    for n in (1, 2, 7):
        args = smooth_args("gini", None, n=n)
        assert gradgradcheck(lambda a: xa.ops.gini(a)[0], args)


@by_op
@pytest.mark.parametrize("wanted", range(4))
def test_only_the_gradients_asked_for_are_computed(op, wanted, backend):
    args = smooth_args(op, "slopes")
    floating = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
    if wanted >= len(floating):
        wanted = 0
    both = getattr(xa.ops, op)(*args)
    want = torch.autograd.grad((both if isinstance(both, Tensor) else both[0]).sum(), floating[wanted])[0]
    alone = [
        t.detach().requires_grad_(t is floating[wanted]) if isinstance(t, Tensor) and t.requires_grad else t
        for t in args
    ]
    result = getattr(xa.ops, op)(*alone)
    (result if isinstance(result, Tensor) else result[0]).sum().backward()
    gradients = [t.grad for t in alone if isinstance(t, Tensor) and t.grad is not None]
    assert len(gradients) == 1
    torch.testing.assert_close(gradients[0], want)


def gradients(function, args, seed):
    args = tuple(t.detach().requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in args)
    result = function(*args)
    result = result if isinstance(result, Tensor) else result[0]
    generator = torch.Generator(result.device).manual_seed(seed)
    d = torch.randn(result.shape, generator=generator, dtype=torch.float64, device=result.device)
    leaves = [t for t in args if isinstance(t, Tensor) and t.requires_grad]
    return torch.autograd.grad(result, leaves, d.bfloat16().to(result.dtype), allow_unused=True)


def samples_away_from_the_kink(op, dtype, device):
    """All samples, but of a product those with ties only: rounding moves no pre-activation of theirs across zero."""
    return [s for s in sample_inputs(op, dtype, device) if op != "linear_relu_mask" or "ties" in s.name]


@by_op
@by_dtype
def test_gradients_are_within_twice_the_error_of_pytorch(op, dtype, backend, device, seed):
    def of_tensors(function, *args):
        return [g for g in gradients(function, args, seed) if g.numel() != 1]

    for sample in samples_away_from_the_kink(op, dtype, device):
        got = of_tensors(getattr(xa.ops, op), *sample.args)
        assert_as_good_as(got, functools.partial(of_tensors, DEFINITIONS[op]), sample.args, f"{op} {sample.name}")


@pytest.mark.parametrize("op", [op for op in LAYER_OPS if "slope" in xa.ops.SCHEMAS[op]])
@by_dtype
def test_gradients_of_a_single_slope_are_within_twice_the_error_of_pytorch(op, dtype, backend, device, seed):
    """The error of one number is a matter of luck, so it is the largest of many that counts."""
    samples = [s for _ in range(3) for s in samples_away_from_the_kink(op, dtype, device) if "one slope" in s.name]
    flat = tuple(t for sample in samples for t in sample.args)
    count = len(samples[0].args)

    def of_slopes(function, *flat):
        calls = [flat[i : i + count] for i in range(0, len(flat), count)]
        return torch.cat([gradients(function, args, seed)[-1] for args in calls])

    got = of_slopes(getattr(xa.ops, op), *flat)
    assert_as_good_as(got, functools.partial(of_slopes, DEFINITIONS[op]), flat, op)


def few_samples(op):
    """Three different calls of an operator in float32: ordinary, empty, and strided with a slope for each channel."""
    samples = sample_inputs(op, torch.float32)
    empty = next(s for s in samples if s.name.startswith(("(0,", "((0,", "0,")))
    return [samples[len(samples) // 2], empty, samples[-1]]


@by_op
@pytest.mark.parametrize("which", ["ordinary", "empty", "strided"])
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no grad", "grad"])
def test_opcheck(op, which, requires_grad):
    sample: Sample = few_samples(op)[["ordinary", "empty", "strided"].index(which)]
    args = tuple(
        t.clone(memory_format=torch.preserve_format).requires_grad_(requires_grad)
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for t in sample.args
    )
    torch.library.opcheck(getattr(torch.ops.xattr, op).default, args)


@by_op
@by_dtype
def test_fake_results_have_the_shape_and_dtype_of_real_ones(op, dtype, backend, device):
    for sample in sample_inputs(op, dtype, device):
        real = getattr(xa.ops, op)(*sample.args)
        meta = tuple(t.to("meta") if isinstance(t, Tensor) else t for t in sample.args)
        fake = getattr(torch.ops.xattr, op)(*meta)
        pairs = [(real, fake)] if isinstance(real, Tensor) else zip(real, fake, strict=True)
        for r, f in pairs:
            assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride()), sample.name


@by_op
def test_an_operator_compiles_into_one_graph(op):
    sample = few_samples(op)[0]
    function = getattr(xa.ops, op)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    got, want = compiled(*sample.args), function(*sample.args)
    torch.testing.assert_close(got, want)
