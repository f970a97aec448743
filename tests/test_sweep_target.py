"""Targets of attribute: every kind against double backward, and every wrong one refused."""

import pytest
import torch
from helpers import assert_same_step, eager_attribute, run_step
from networks import build, linear
from torch import nn

import xattr_cuda as xa

FLAT = {  # for outputs [5, 3]
    "int": 2,
    "negative int": -2,
    "tensor": torch.tensor([2, 0, 1, 1, 0]),
    "int32 tensor": torch.tensor([2, 0, 1, 1, 0], dtype=torch.int32),
    "tensor of one element": torch.tensor([1]),
    "scalar tensor": torch.tensor(2),
    "tuple": (1,),
    "list of ints": [2, -1, 0, 1, 0],
    "list of tuples": [(2,), (0,), (-1,), (1,), (0,)],
}
DENSE = {  # for outputs [5, 4, 3]
    "tuple": (3, 1),
    "tuple with negatives": (-1, -3),
    "list of tuples": [(0, 2), (3, 1), (-1, 0), (2, 2), (1, -1)],
}


@pytest.mark.parametrize("kind", FLAT)
def test_a_target_of_many_outputs_equals_double_backward(kind, backend):
    model, x = build("many outputs", batch=5)
    want = run_step(eager_attribute, model, x, FLAT[kind])
    assert_same_step(run_step(xa.attribute, model, x, FLAT[kind]), want)


@pytest.mark.parametrize("kind", DENSE)
def test_a_target_of_dense_outputs_equals_double_backward(kind, backend):
    model, x = build("a sequence", batch=5)
    want = run_step(eager_attribute, model, x, DENSE[kind])
    assert_same_step(run_step(xa.attribute, model, x, DENSE[kind]), want)


@pytest.mark.parametrize("target", [None, 0, -1, (0,), torch.zeros(5, dtype=torch.long), [0] * 5], ids=repr)
def test_every_target_of_a_single_output_is_that_output(target, backend):
    model, x = build("one output", batch=5)
    want = run_step(eager_attribute, model, x)
    assert_same_step(run_step(xa.attribute, model, x, target), want)


@pytest.mark.parametrize("target", [1, torch.empty(0, dtype=torch.long), []], ids=repr)
def test_a_target_of_an_empty_batch_gives_an_empty_attribution(target, backend):
    model, x = build("many outputs", batch=0)
    output, attribution = xa.attribute(model, x, target)
    assert output.shape == (0, 3)
    assert attribution.shape == (0, 6)


def test_a_target_equals_its_one_hot_cotangent(backend):
    model, x = build("many outputs", batch=5)
    labels = torch.randint(3, (5,))
    one_hot = torch.nn.functional.one_hot(labels, 3).double()
    assert torch.equal(xa.attribute(model, x, labels)[1], xa.attribute(model, x, cotangent=one_hot)[1])


WRONG = {  # for outputs [5, 3]: target, error, what the message says
    "missing": (None, ValueError, r"\[5, 3\].*`target`.*`cotangent`"),
    "a bool": (True, ValueError, "True"),
    "an int out of range": (3, IndexError, r"3.*\[5, 3\]"),
    "a negative int out of range": (-4, IndexError, r"-4.*\[5, 3\]"),
    "labels out of range": (torch.tensor([0, 1, 2, 3, 0]), IndexError, r"0 to 3.*\[5, 3\]"),
    "negative labels": (torch.tensor([0, 1, -1, 2, 0]), IndexError, r"-1 to 2.*\[5, 3\]"),
    "float labels": (torch.zeros(5), TypeError, "float32.*integers"),
    "bool labels": (torch.ones(5, dtype=torch.bool), TypeError, "bool.*integers"),
    "one bool label": (torch.ones(1, dtype=torch.bool), TypeError, "bool.*integers"),
    "one float label": (torch.ones(1), TypeError, "float32.*integers"),
    "too few labels": (torch.zeros(4, dtype=torch.long), ValueError, r"\[4\].*\[5, 3\].*\[B\]"),
    "labels by column": (torch.zeros(5, 1, dtype=torch.long), ValueError, r"\[5, 1\].*\[B\]"),
    "a tuple too long": ((1, 1), ValueError, r"2 indices.*\[5, 3\].*wanted 1"),
    "an empty tuple": ((), ValueError, "0 indices.*wanted 1"),
    "a tuple of floats": ((1.0,), TypeError, "float.*integers"),
    "a tuple out of range": ((7,), IndexError, r"7.*\[5, 3\]"),
    "a short list": ([0, 1], ValueError, "list of 2.*batch of 5"),
    "a list out of range": ([0, 1, 2, 3, 0], IndexError, r"3.*\[5, 3\]"),
    "a list of long tuples": ([(0, 1)] * 5, ValueError, "2 indices"),
    "a string": ("cat", TypeError, "str.*LongTensor"),
    "a float": (1.0, TypeError, "float.*LongTensor"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_a_wrong_target_is_refused(kind, grad):
    model, x = build("many outputs", batch=5)
    if kind.startswith("one "):
        x = x[:1]
    target, error, message = WRONG[kind]
    with pytest.raises(error, match=message), torch.set_grad_enabled(grad):
        xa.attribute(model, x, target)


@pytest.mark.parametrize(
    ("target", "error"),
    [(1, IndexError), (torch.tensor([0, 1, 0, 0, 1]), IndexError), (torch.zeros(5), TypeError), ((0, 0), ValueError)],
    ids=repr,
)
def test_a_label_for_a_single_output_is_refused_with_what_to_do(target, error):
    model, x = build("one output", batch=5)
    with pytest.raises(error, match="target") as refused:
        xa.attribute(model, x, target)
    if error is not ValueError:
        assert "leave `target` out" in str(refused.value)


def test_labels_for_dense_outputs_are_refused():
    model, x = build("a sequence", batch=5)
    with pytest.raises(ValueError, match=r"\[5, 4, 3\]"):
        xa.attribute(model, x, torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="wanted 2"):
        xa.attribute(model, x, 1)


@pytest.mark.parametrize(
    ("cotangent", "given"),
    [
        (torch.ones(5), r"\[5\]"),
        (torch.ones(1, 3), r"\[1, 3\]"),
        (torch.ones(5, 3, dtype=torch.long), "int64"),
        ([1.0, 2.0, 3.0], "list"),
    ],
)
def test_a_wrong_cotangent_is_refused(cotangent, given):
    model, x = build("many outputs", batch=5)
    with pytest.raises(ValueError, match=rf"`cotangent` is.*{given}.*\[5, 3\]"):
        xa.attribute(model, x, cotangent=cotangent)


def test_a_cotangent_and_a_target_together_are_refused():
    model, x = build("many outputs", batch=5)
    with pytest.raises(ValueError, match="`target` or `cotangent`, not both"):
        xa.attribute(model, x, 1, cotangent=torch.ones(5, 3))
    with pytest.raises(ValueError, match="`target` or `cotangent`, not both"):
        xa.attribute(nn.Sequential(linear(6, 1)).double(), x, 0, cotangent=torch.ones(5, 1))
