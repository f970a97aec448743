"""Checkpoints: what is read, how names are matched, and what is refused without a trace in the model."""

import argparse
import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import xattr_cuda as xa

WIDTHS = [5, 4, 3]


def fresh():
    return xa.models.xmlp(WIDTHS)


def trained():
    """The state dict of a network, with random values."""
    return {name: torch.randn_like(t) for name, t in fresh().state_dict().items()}


def save(path, content):
    torch.save(content, path)
    return path


def assert_holds(model, state):
    assert list(model.state_dict()) == list(state)
    for name, t in model.state_dict().items():
        torch.testing.assert_close(t, state[name].to(t.dtype), rtol=0, atol=0)


def assert_refused(path, message, model=None):
    """The error is one line that names the file, and the model is as it was."""
    model = fresh() if model is None else model
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message) as caught:
        xa.models.load_checkpoint(path, model)
    assert repr(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_holds(model, before)


def as_the_training_script_saves_it(state):
    optimizer = torch.optim.SGD(fresh().parameters(), 0.1, momentum=0.9)
    rest = {"epoch": 90, "arch": "x", "best_acc1": torch.tensor(71.2), "optimizer": optimizer.state_dict()}
    return {**rest, "state_dict": OrderedDict(state)}


LAYOUTS = {
    "bare": dict,
    "under state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "under model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "of the training script": as_the_training_script_saves_it,
    "with a data-parallel prefix": lambda state: {"state_dict": {f"module.{k}": t for k, t in state.items()}},
    "with a compiled prefix": lambda state: {f"_orig_mod.module.{k}": t for k, t in state.items()},
    "with a prefix inside": lambda state: {k.replace(".", ".module.", 1): t for k, t in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("old_format", [False, True])
def test_every_layout_gives_the_parameters_their_values(layout, old_format, tmp_path):
    state, path = trained(), tmp_path / "checkpoint.pth.tar"
    torch.save(layout(state), path, _use_new_zipfile_serialization=not old_format)
    found = xa.models.load_checkpoint(path)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], t) for name, t in state.items())
    model = fresh()
    assert xa.models.load_checkpoint(str(path), model) is model
    assert_holds(model, state)


def test_features_wrapped_alone_are_found_in_a_vgg(tmp_path):
    model = xa.models.xvgg11(num_classes=2, image_size=32, device="meta")
    names = [f"module.{n}".replace("features.", "features.module.") for n in model.state_dict()]
    path = save(tmp_path / "vgg.pth", {"state_dict": {name: torch.zeros(1) for name in names}})
    assert list(xa.models.load_checkpoint(path)) == list(model.state_dict())


def test_a_model_whose_own_names_hold_module_keeps_them(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(3, 2, bias=False)})
    state = {"module.weight": torch.randn(2, 3)}
    assert_holds(xa.models.load_checkpoint(save(tmp_path / "a.pt", state), model), state)


def test_the_dtype_and_the_parameters_stay_those_of_the_model(tmp_path):
    state, model = trained(), fresh().to(torch.bfloat16)
    parameters = list(model.parameters())
    xa.models.load_checkpoint(save(tmp_path / "a.pt", state), model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    assert_holds(model, state)


def test_tensors_without_a_model_are_on_the_cpu_and_of_the_files_dtype(tmp_path):
    state = {name: t.half() for name, t in trained().items()}
    found = xa.models.load_checkpoint(save(tmp_path / "a.pt", state))
    assert {(t.dtype, t.device.type) for t in found.values()} == {(torch.float16, "cpu")}


def test_missing_unexpected_and_misshapen_parameters_are_named_together(tmp_path):
    state = trained()
    first, second = state
    state[first] = torch.randn(7, 5)
    state["extra.bias"] = state.pop(second)
    message = rf"does not fit the Sequential: it is missing {second}, has unexpected extra.bias, has other shapes for "
    assert_refused(save(tmp_path / "a.pt", state), message + rf"{first} \(\[7, 5\], wanted \[4, 5\]\)")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_one_wrong_parameter_leaves_the_model_untouched(change, tmp_path):
    state = trained()
    second = list(state)[1]
    if change == "missing":
        del state[second]
    elif change == "unexpected":
        state["2.bias"] = torch.randn(3)
    else:
        state[second] = state[second][:1]
    named = {"missing": second, "unexpected": "2.bias", "shape": second}[change]
    assert_refused(save(tmp_path / "a.pt", state), named)


def test_a_long_list_of_names_is_cut_short(tmp_path):
    state = {f"layer{i}.bias": torch.zeros(1) for i in range(50)}
    assert_refused(save(tmp_path / "a.pt", state), "has unexpected layer0.bias, .* and 46 more")


def test_one_parameter_under_two_names_is_refused(tmp_path):
    state = trained()
    first = next(iter(state))
    assert_refused(save(tmp_path / "a.pt", {**state, f"module.{first}": state[first]}), f"more than one .* {first}")


@pytest.mark.parametrize(
    ("content", "held"),
    [
        (torch.zeros(3), "an object of type Tensor"),
        ([torch.zeros(3)], "an object of type list"),
        ({}, "an empty dictionary"),
        ({"epoch": 3, "lr": 0.1}, "a dictionary of epoch, lr"),
        ({"state_dict": {"0.weight": 3}}, "a dictionary of state_dict"),
    ],
    ids=["tensor", "list", "empty", "no state dict", "no tensors"],
)
def test_a_file_without_a_state_dict_is_refused(content, held, tmp_path):
    assert_refused(save(tmp_path / "a.pt", content), f"holds {held}; wanted a state dict")


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole = save(tmp_path / "whole.pt", trained()).read_bytes()
    contents = [b"", b"no checkpoint\n" * 9, whole[:-40], whole[:100], whole[:4] + whole[60:]]
    for i, content in enumerate(contents):
        path = tmp_path / f"{i}.pt"
        path.write_bytes(content)
        assert_refused(path, "cannot be read .*damaged")


@pytest.mark.parametrize("old_format", [False, True])
def test_objects_that_may_run_code_are_refused_by_name(old_format, tmp_path):
    path = tmp_path / "a.pt"
    content = {"state_dict": trained(), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    assert_refused(path, r"argparse\.Namespace.*weights_only=False")


def test_a_path_without_a_file_is_named(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"checkpoint .*: there is no such file") as caught:
            xa.models.load_checkpoint(path, fresh())
        assert repr(str(path)) in str(caught.value)
