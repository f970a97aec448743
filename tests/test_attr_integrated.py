"""Integrated Gradients against Captum, against a naive formula and its double backward, and its refusals."""

from collections.abc import Iterator
from contextlib import contextmanager

import captum.attr
import pytest
import torch
from attr_cases import DENSE, TARGETS, TwoInputs, assert_equal, dense, pair, rows, smooth
from captum.attr._utils.approximation_methods import approximation_parameters
from helpers import assert_same_step, collect, curved_loss, picked, relative_error
from torch import Tensor, nn

from xattr_cuda.attr import ExpectedGradients, IntegratedGradients
from xattr_cuda.attr.integrated_gradients import METHODS


@contextmanager
def double_precision() -> Iterator[None]:
    """Captum rounds places and weights to single precision; in here it keeps them in double."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def captum_ig(model: nn.Module, *args, **kwargs):
    with double_precision():
        return captum.attr.IntegratedGradients(model).attribute(*args, **kwargs)


def naive_ig(model: nn.Module, x: Tensor, baseline: Tensor, target, n_steps: int, method: str) -> Tensor:
    """The formula as it reads, a step at a time."""
    with double_precision():
        sizes, places = approximation_parameters(method)
        steps = list(zip(sizes(n_steps), places(n_steps), strict=True))
    total = torch.zeros_like(x)
    for size, place in steps:
        point = baseline + place * (x - baseline)
        (gradient,) = torch.autograd.grad(picked(model(point), target), point, create_graph=True)
        total = total + size * gradient
    return total * (x - baseline)


@pytest.mark.parametrize("n_steps", [2, 7, 50])
@pytest.mark.parametrize("method", METHODS)
def test_integrated_gradients_and_their_delta_equal_captum_s(method, n_steps):
    model, x, baseline = smooth(), rows(5, 6), rows(5, 6)
    arguments = {"n_steps": n_steps, "method": method, "return_convergence_delta": True}
    want = captum_ig(model, x, baseline, 1, **arguments)
    assert_equal(IntegratedGradients(model).attribute(x, baseline, 1, **arguments), want)
    constructed = IntegratedGradients(model, n_steps, method).attribute(x, baseline, 1, return_convergence_delta=True)
    assert_equal(constructed, want)


@pytest.mark.parametrize("kind", TARGETS)
def test_every_target_equals_captum_s(kind):
    model, x, target = smooth(), rows(5, 6), TARGETS[kind]
    assert_equal(
        IntegratedGradients(model).attribute(x, target=target, return_convergence_delta=True),
        captum_ig(model, x, target=target, return_convergence_delta=True),
    )


@pytest.mark.parametrize("kind", DENSE)
def test_every_target_of_dense_outputs_equals_captum_s(kind):
    model, x, target = dense(), rows(5, 6), DENSE[kind]
    assert_equal(
        IntegratedGradients(model).attribute(x, target=target, return_convergence_delta=True),
        captum_ig(model, x, target=target, return_convergence_delta=True),
    )


@pytest.mark.parametrize("tail", [(), (nn.Flatten(0),)], ids=["[B, 1]", "[B]"])
def test_one_output_needs_no_target(tail):
    model, x = smooth(*tail, outputs=1), rows(5, 6)
    assert_equal(IntegratedGradients(model).attribute(x), captum_ig(model, x))


BASELINES = {
    "nothing": lambda: None,
    "a number for each": lambda: (0.3, -1),
    "tensors": lambda: (rows(5, 4), rows(5, 2, 3)),
    "one row for all": lambda: (rows(1, 4), rows(1, 2, 3)),
    "a mixture": lambda: (0.5, rows(1, 2, 3)),
}


@pytest.mark.parametrize("kind", BASELINES)
def test_baselines_of_two_inputs_equal_captum_s(kind):
    model, x, baselines = TwoInputs().double(), pair(), BASELINES[kind]()
    assert_equal(
        IntegratedGradients(model).attribute(x, baselines, 2, return_convergence_delta=True),
        captum_ig(model, x, baselines, 2, return_convergence_delta=True),
    )


@pytest.mark.parametrize("baseline", [None, 0, 0.7, "a tensor", "one row", "a tuple"])
def test_baselines_of_one_input_equal_captum_s(baseline):
    model, x = smooth(), rows(5, 6)
    tensors = {"a tensor": rows(5, 6), "one row": rows(1, 6), "a tuple": (0.2,)}
    baseline = tensors.get(baseline, baseline)
    assert_equal(IntegratedGradients(model).attribute(x, baseline, 2), captum_ig(model, x, baseline, 2))


def test_a_number_is_the_baseline_of_every_input():
    explain, x = IntegratedGradients(TwoInputs().double()), pair()
    assert_equal(explain.attribute(x, 0.3, 1), explain.attribute(x, (0.3, 0.3), 1))


ARGUMENTS = {
    "a tensor": lambda: rows(5, 8),
    "a tuple with a number": lambda: (rows(5, 8), 2),
    "a tuple with a scalar tensor": lambda: (rows(5, 8), torch.tensor(2)),
    "a tuple with None": lambda: (None, 2),
}


@pytest.mark.parametrize("chunk", [None, 15])
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_additional_arguments_go_with_the_steps_as_captum_s(kind, chunk):
    model, x, arguments = TwoInputs().double(), pair(), ARGUMENTS[kind]()
    given = (x, None, [0, 2, 1, 1, 0], arguments, 8)
    assert_equal(
        IntegratedGradients(model).attribute(*given, internal_batch_size=chunk, return_convergence_delta=True),
        captum_ig(model, *given, internal_batch_size=chunk, return_convergence_delta=True),
    )


class Spy:
    """A model that notes how many rows it is given at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.rows = model, []

    def __call__(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.model(x)


@pytest.mark.parametrize("chunk", [5, 7, 12, 100])
@pytest.mark.parametrize("make", [IntegratedGradients, lambda model, n: ExpectedGradients(model, rows(3, 6), n)])
def test_internal_batch_size_bounds_the_rows_at_a_time_and_changes_nothing(make, chunk):
    spy, x, seed = Spy(smooth()), rows(5, 6), torch.initial_seed()
    explain = make(spy, 9)
    torch.manual_seed(seed)
    want = explain.attribute(x, target=1, return_convergence_delta=True)
    spy.rows.clear()
    torch.manual_seed(seed)
    got = explain.attribute(x, target=1, internal_batch_size=chunk, return_convergence_delta=True)
    assert max(spy.rows) <= chunk
    assert spy.rows[0] == min(45, chunk // 5 * 5)
    assert_equal(got, want, 1e-12)


def test_an_internal_batch_size_below_a_step_warns_and_runs_one_step_at_a_time():
    spy, x = Spy(smooth()), rows(5, 6)
    with pytest.warns(UserWarning, match="`internal_batch_size` is 3") as caught:
        got = IntegratedGradients(spy, 4).attribute(x, target=0, internal_batch_size=3, return_convergence_delta=True)
    assert spy.rows == [5] * 6
    assert [w.filename for w in caught] == [__file__]
    assert_equal(got, IntegratedGradients(spy, 4).attribute(x, target=0, return_convergence_delta=True), 1e-12)


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_integrated_gradients_equal_double_backward(method, chunk):
    model, x, baseline = smooth(), rows(5, 6).requires_grad_(), rows(1, 6).requires_grad_()
    labels = torch.randint(3, (5,))
    leaves = {**dict(model.named_parameters()), "input": x, "baseline": baseline}

    def step(attribution: Tensor):
        return collect(curved_loss(model(x), attribution), {"attribution": attribution}, leaves)

    got = IntegratedGradients(model, 6, method).attribute(x, baseline, labels, internal_batch_size=chunk)
    assert_same_step(step(got), step(naive_ig(model, x, baseline, labels, 6, method)))


def test_gradients_flow_through_the_attributions_of_two_inputs():
    model, x = TwoInputs().double(), tuple(t.requires_grad_() for t in pair())
    gate = rows(5, 8).requires_grad_()
    inputs = (*x, gate, *model.parameters())

    def loss(*_: Tensor) -> Tensor:
        first, second = IntegratedGradients(model, 3).attribute(x, target=1, additional_forward_args=gate)
        return first.sin().sum() + (second**2).sum()

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["ig", "eg"])
def test_without_gradients_the_attribution_is_the_same_and_has_no_graph(kind, guard):
    model, x, gate = TwoInputs().double(), tuple(t.requires_grad_() for t in pair()), rows(5, 8)
    background = (rows(1, 4), rows(1, 2, 3))
    explain = IntegratedGradients(model, 4) if kind == "ig" else ExpectedGradients(model, background)
    given = {"target": 1, "additional_forward_args": gate, "return_convergence_delta": True}
    seed = torch.initial_seed()
    torch.manual_seed(seed)
    want, want_delta = explain.attribute(x, **given)
    with guard():
        torch.manual_seed(seed)
        got, delta = explain.attribute(x, **given)
    assert all(t.requires_grad for t in want)
    assert not any(t.requires_grad for t in (*got, delta, want_delta))
    assert_equal(got, tuple(t.detach() for t in want), 1e-12)
    assert_equal(delta, want_delta, 1e-12)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_double_backward_is_prepared_only_where_gradients_are_on(grad):
    prepared = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            prepared.append(torch.is_grad_enabled())
            return 2 * gradient

    with torch.set_grad_enabled(grad):
        IntegratedGradients(lambda x: Double.apply(x).sum(1)).attribute(rows(5, 6))
    assert prepared == [grad]


@pytest.mark.parametrize("n_steps", [1, 4])
def test_tensors_made_in_inference_mode_are_attributed(n_steps):
    explain = IntegratedGradients(TwoInputs().double(), n_steps)
    with torch.inference_mode():
        x, gate = pair(), rows(5, 8)
        got = explain.attribute(x, target=1, additional_forward_args=gate)
    want = explain.attribute(tuple(t.clone() for t in x), target=1, additional_forward_args=gate.clone())
    assert_equal(got, tuple(t.detach() for t in want), 1e-12)


def test_an_infinite_output_beside_the_target_does_not_reach_the_delta():
    explain = IntegratedGradients(lambda x: torch.stack([x.sum(1), x.sum(1) * 1e200 * 1e200], 1))
    _, delta = explain.attribute(rows(5, 6), target=0, return_convergence_delta=True)
    assert delta.abs().max() <= 1e-12


def test_an_input_that_the_output_does_not_depend_on_has_no_attribution():
    first, second = IntegratedGradients(lambda x, z: x.square()).attribute((rows(5, 1), rows(5, 2)))
    assert first.all()
    assert not second.any()


def test_the_input_and_its_requirement_of_a_gradient_are_left_alone():
    x = rows(5, 6)
    before = x.clone()
    IntegratedGradients(smooth(), 3).attribute(x, target=0)
    assert not x.requires_grad
    assert x.grad is None
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attributions_have_the_dtype_of_the_input_and_its_precision(dtype):
    model, x = smooth(), rows(5, 6)
    want = IntegratedGradients(model).attribute(x, 0.5, 1)
    model, x = model.to(dtype), x.to(dtype)
    got = IntegratedGradients(model).attribute(x, 0.5, 1)
    assert got.dtype == dtype
    assert relative_error(got, want) <= 8 * torch.finfo(dtype).eps


def test_inputs_of_two_dtypes_keep_theirs():
    x, z = rows(5, 3).float(), rows(5, 3)
    explain = IntegratedGradients(lambda x, z: x.sum(1) + z.pow(3).sum(1))
    (first, second), delta = explain.attribute((x, z), return_convergence_delta=True)
    assert_equal(first, x, 1e-6)
    assert_equal(second.detach(), z.pow(3), 1e-12)
    assert delta.abs().max() <= 1e-5


WRONG = {  # for an input [5, 6] and outputs [5, 3]: arguments, error, what the message says
    "no method": ({"method": "simpson"}, ValueError, "`method` is 'simpson'.*gausslegendre"),
    "an empty method": ({"method": ""}, ValueError, "`method` is ''"),
    "no steps": ({"n_steps": 0}, ValueError, "`n_steps` is 0.*at least 1"),
    "a short trapezoid": ({"n_steps": 1, "method": "riemann_trapezoid"}, ValueError, "`n_steps` is 1.*at least 2"),
    "no rows at a time": ({"internal_batch_size": 0}, ValueError, "`internal_batch_size` is 0"),
    "no target": ({"target": None}, ValueError, r"\[5, 3\].*`target`"),
    "a target out of range": ({"target": 3}, IndexError, r"3.*\[5, 3\]"),
    "too few targets": ({"target": [0, 1]}, ValueError, "list of 2.*batch of 5"),
    "a list of inputs": ({"inputs": [rows(5, 6)]}, TypeError, "`inputs` is a list"),
    "no inputs": ({"inputs": ()}, ValueError, "`inputs` is a tuple of 0"),
    "integer inputs": ({"inputs": torch.ones(5, 6).long()}, TypeError, "`inputs`.*int64.*floating"),
    "a scalar input": ({"inputs": torch.tensor(1.0)}, ValueError, "`inputs` is a scalar"),
    "two batches": ({"inputs": (rows(5, 6), rows(4, 6))}, ValueError, r"\[5, 6\], \[4, 6\].*one B"),
    "a baseline too wide": ({"baselines": rows(5, 7)}, ValueError, r"`baselines`.*\[5, 7\].*\[5, 6\]"),
    "a baseline of another batch": ({"baselines": rows(2, 6)}, ValueError, r"`baselines`.*\[2, 6\]"),
    "a scalar baseline": ({"baselines": torch.tensor(0.0)}, ValueError, r"`baselines`.*\[\]"),
    "a baseline too many": ({"baselines": (0, 0)}, ValueError, "`baselines`.*2.*1"),
    "a baseline in words": ({"baselines": "zero"}, TypeError, "`baselines` holds a str"),
    "a baseline elsewhere": ({"baselines": rows(5, 6).to("meta")}, ValueError, "`baselines` is on meta.*cpu"),
    "a shared argument": ({"additional_forward_args": rows(2)}, ValueError, r"\[2\].*batch of 5.*partial"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arguments_of_integrated_gradients_are_refused(kind):
    arguments, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        IntegratedGradients(smooth()).attribute(**{"inputs": rows(5, 6), "target": 1, **arguments})


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: x.detach(), ValueError, "without a gradient"),
        (lambda x: x.sum(), ValueError, r"shape \[\] for 250 rows"),
        (lambda x: x.sum(0), ValueError, r"shape \[6\] for 250 rows"),
        (lambda x: (x,), TypeError, "`model` returned a tuple"),
    ],
    ids=["detached", "a scalar", "summed over the batch", "a tuple"],
)
def test_a_model_that_cannot_be_attributed_is_refused(model, error, message):
    with pytest.raises(error, match=message):
        IntegratedGradients(model).attribute(rows(5, 6), target=0)
