"""The file of configurations that were measured on a device, and that launchers take them. All without a GPU."""

import json
import warnings
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tuning import CPU, a_choice  # noqa: E402
from xattr_cuda.kernels.triton import configs, tuned, weight_gradients  # noqa: E402

from xattr_cuda.bench.gpu import tune  # noqa: E402
from xattr_cuda.kernels import triton as kernels  # noqa: E402
from xattr_cuda.ops import gpu  # noqa: E402

FAMILIES = tuple(configs._ROWS)
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))
pytestmark = pytest.mark.usefixtures("tuning_folder", "precision_restored")


@pytest.fixture
def precision_restored():
    """Families of products set how fp32 is multiplied."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def drawn(family):
    """A launcher and arguments that ask for a configuration of the family."""
    a, b = torch.randn(70, 96), torch.randn(70, 96)
    if family == "elementwise":
        return kernels.relu_mask, (a,)
    if family == "pool":
        return kernels.max_pool, (torch.randn(2, 3, 8, 10), *WINDOW, False)
    if family == "attribution":
        return kernels.input_times_gradient, (a, b)
    if family == "gini":
        return kernels.gini, (torch.rand(1500),)
    dtype = torch.bfloat16 if family == "product" or family.endswith("half") else torch.float32
    torch.set_float32_matmul_precision("high" if family.endswith("tf32") else "highest")
    if family.startswith("weight_gradients"):
        pairs = weight_gradients.Pairs(None, None, a.to(dtype), b.to(dtype))
        return weight_gradients.weight_gradients, ([[pairs]], 1, len(a), False, [torch.empty(96, 96, dtype=dtype)])
    if family.startswith("perceptron"):
        x, weights, u = torch.randn(70, 33), [torch.randn(40, 33), torch.randn(3, 40)], torch.ones(70, 3)
        return kernels.mlp_attribute, (x.to(dtype), [w.to(dtype) for w in weights], [0.0], u.to(dtype), [], [])
    return kernels.linear_relu_mask, (a.to(dtype), torch.randn(75, 96).to(dtype))


def asked(launcher, args):
    """(request, the table's choice) of the launch."""
    with tuned.trying() as found:
        launcher(*args)
    ((request, table),) = found.items()
    return request, table


def another(family, table):
    """A candidate with more or fewer warps than the table's."""
    return next(c for c in configs.candidates(family) if c.num_warps != table.num_warps)


# ---- candidates ----


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_are_the_entries_of_all_architectures_and_more_each_once(family):
    operator, which = configs._ROWS[family]
    found = configs.candidates(family)
    entries = [c for arch in configs.ARCHITECTURES for c in configs.configs(operator, arch)[which]]
    assert all(c in found for c in entries)
    assert len(found) > len(set(entries))
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert len({tuple(c.blocks) for c in found}) == 1, "they set the same constants of a kernel"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_candidate_that_fits_the_device_has_the_results_of_the_table(family, emulated):
    launcher, args = drawn(family)
    request, table = asked(launcher, args)
    assert request.family == family
    found = tune.tune_one(request, table, [lambda: launcher(*args)], lambda call: call() and 1.0)
    assert all("out of resource: shared memory" in why for _, why in found.skipped), found.skipped
    assert len(found.skipped) < len(configs.candidates(family)) / 2


# ---- the file ----


def test_what_is_saved_is_in_force_at_once_and_after_reading_it_again(emulated, tuning_folder):
    request, config = a_choice()
    assert not tuned.of_device(CPU).choices
    path = tuned.save(CPU, {request: config})
    assert [*tuning_folder.iterdir()] == [path]
    assert path.name == f"tune-cuda-80-{triton.__version__}.json"
    for _ in range(2):
        assert tuned.of_device(CPU) == tuned.Tuned(path, {request: config})
        tuned.forget()


def test_the_file_lies_where_the_system_keeps_caches(monkeypatch, emulated, tmp_path):
    monkeypatch.delenv("XATTR_CUDA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert tuned.path_of(CPU).parent == tmp_path / "caches" / "xattr_cuda"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tuned.path_of(CPU).parent == Path.home() / ".cache" / "xattr_cuda"


def with_entry(**other):
    def change(content):
        content["choices"][0].update(other)
        return content

    return change


SPOILED = {
    "no JSON": (lambda content: None, "Expecting value"),
    "no table": (lambda content: [], "it holds no table"),
    "another device": (lambda content: {**content, "device": "cuda 90"}, "its device is 'cuda 90', not 'cuda 80'"),
    "another Triton": (lambda content: {**content, "triton": "1.0"}, "its triton is '1.0', not"),
    "an older format": (lambda content: {**content, "format": 0}, "its format is 0, not 1"),
    "no format": (lambda content: {"choices": []}, "its format is None, not 1"),
    "no choices": (lambda content: {k: v for k, v in content.items() if k != "choices"}, "KeyError: 'choices'"),
    "half a request": (with_entry(request=["elementwise"]), "a damaged entry"),
    "another family": (with_entry(request=["x", "relu_mask", "float32", "", "1x4096"]), "a damaged entry"),
    "blocks unheard of": (
        with_entry(config={"name": "w7", "blocks": {"WORDS": 7}, "num_warps": 4}),
        "w7, 4 warps, 1 stages is not a configuration of this version",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_file_that_is_not_of_this_device_and_version_is_refused_in_one_warning(how, emulated):
    spoil, words = SPOILED[how]
    launcher, args = drawn("elementwise")
    request, table = asked(launcher, args)
    path = tuned.save(CPU, {request: another("elementwise", table)})
    content = spoil(json.loads(path.read_text()))
    path.write_text("" if content is None else json.dumps(content))
    with pytest.warns(UserWarning, match="is not used") as said:
        launcher(*args)
    assert len(said) == 1
    assert str(path) in str(said[0].message)
    assert words in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned._measured.cache_clear()
        launcher(*args)
    assert [launch.metadata.num_warps for launch in emulated.launches] == [table.num_warps] * 3
    assert words in gpu.tuning()


# ---- launches ----


def launches(driver):
    return [(one.name, one.grid, one.metadata.num_warps, one.metadata.num_stages) for one in driver.launches]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_launch_takes_the_configuration_of_the_file(family, emulated):
    launcher, args = drawn(family)
    request, table = asked(launcher, args)
    emulated.launches.clear()
    want, by_table = launcher(*args), launches(emulated)
    config = another(family, table)
    with tuned.trying(request, config):
        emulated.launches.clear()
        launcher(*args)
    by_config = launches(emulated)
    tuned.save(CPU, {request: config})
    emulated.launches.clear()
    got = launcher(*args)
    assert launches(emulated) == by_config != by_table
    assert not tune.disagreement(got, want)


def test_a_choice_is_for_its_own_operator_dtype_and_shape(emulated):
    device, table = CPU, configs.configs("elementwise", "80")[0]
    request, config = a_choice()
    tuned.save(CPU, {request: config})

    def pick(operator="relu_mask_kernel", dtype=torch.float32, shape=(1, 4096), *what):
        return tuned.chosen("elementwise", operator, device, dtype, shape, table, *what)

    assert pick() is config
    assert pick(shape=(1, 2049)) is config
    others = (pick(shape=(1, 2048)), pick(shape=(1, 4097)), pick(shape=(2, 4096)), pick("mask_mul_kernel"))
    assert all(
        c is table for c in (*others, pick(dtype=torch.float16), pick("relu_mask", torch.float32, (1, 4096), "odd"))
    )


def test_the_file_is_read_once(monkeypatch, emulated):
    read, path_of = [], tuned.path_of
    monkeypatch.setattr(tuned, "path_of", lambda device: read.append(device) or path_of(device))
    for rows in (3, 5, 70):
        kernels.relu_mask(torch.randn(rows, 64))
        kernels.mask_mul(torch.randn(rows, 64), torch.zeros(rows, 2, dtype=torch.int32))
    assert len(read) == 1


def test_a_table_in_the_compile_report_does_not_depend_on_the_file(emulated):
    before = [(v.config, v.num_warps) for v in kernels.relu_mask.__globals__["VARIANTS"]]
    request, config = a_choice()
    tuned.save(CPU, {request: config})
    again = [*kernels.elementwise.variants(kernels.relu_mask.__globals__["relu_mask_kernel"], ("z_ptr", "h_ptr"))]
    assert [(v.config, v.num_warps) for v in again] == before
