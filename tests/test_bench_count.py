"""What a training step does on a GPU, counted without one: launches, bytes and FLOPs of every case of the benchmark."""

import functools
import itertools
import json

import pytest
import torch
from rich.console import Console
from test_bench import IMAGES, TINY, TINY_10
from torch import nn

triton = pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime import JITFunction  # noqa: E402 - needs Triton
from triton.runtime.driver import driver  # noqa: E402

import xattr_cuda as xa  # noqa: E402
from xattr_cuda.bench import count, report, run  # noqa: E402
from xattr_cuda.bench.cases import STEPS, Case, perceptron  # noqa: E402
from xattr_cuda.bench.contestants import double_backward, network, sweeps  # noqa: E402
from xattr_cuda.bench.launches import record, recorder  # noqa: E402
from xattr_cuda.bench.measure import Measurement, Result  # noqa: E402
from xattr_cuda.bench.on_gpu import BY_LAYER, DTYPES, on_gpu  # noqa: E402
from xattr_cuda.bench.problem import pose  # noqa: E402
from xattr_cuda.bench.traffic import PRODUCTS, layers_of, least_bytes  # noqa: E402
from xattr_cuda.kernels import triton as kernels  # noqa: E402
from xattr_cuda.ops import gpu  # noqa: E402

PERCEPTRONS = [name for name, case in STEPS.items() if case.widths]
CONVOLUTIONAL = [name for name, case in STEPS.items() if not case.widths]
NARROW = perceptron("narrow", [20, 40, 33, 1], 21, 1)  # which bf16 sweeps whole
DEEP = perceptron("deep", [20, *(40,) * 8, 3], 21, 1)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)
counted = functools.cache(lambda name, dtype: on_gpu(STEPS[name], dtype))


def on_meta(case: Case, dtype: str = "bf16"):
    return pose(case, DTYPES[dtype], device="meta")


def of_sweeps(case: Case, dtype: str = "bf16", by_layer: bool = False):
    """The names of the launches of the network's part."""
    return [one.name for one in record(network(sweeps)(on_meta(case, dtype)), by_layer)[1]]


def served(case: Case, dtype: str) -> bool:
    weights = list(on_meta(case, dtype).model.parameters())
    return bool(case.widths) and gpu.serves_perceptron(weights)


@by_dtype
@pytest.mark.parametrize("name", PERCEPTRONS)
def test_a_perceptron_that_is_swept_whole_takes_at_most_4_launches(name, dtype):
    found = counted(name, dtype)
    assert found.whole == served(STEPS[name], dtype)
    if found.whole:
        assert found.network["attribute"].launches <= 4
        assert found.network["attribute"].bytes < found.network["double backward"].bytes


def test_a_narrow_perceptron_is_swept_whole_by_four_kernels_and_nothing_else():
    assert counted("narrow", "bf16").whole
    assert counted("narrow", "bf16").over_least("attribute") < 1  # activations never leave the chip
    sweeps = ["mlp_attribute_kernel", "mlp_attribute_backward_kernel"]
    assert of_sweeps(STEPS["narrow"]) == [*sweeps, "weight_gradients_kernel", "add_partials_kernel"]


@by_dtype
@pytest.mark.parametrize("name", ["paper", "paper-512", "survival", "narrow", "image-1", "image-10"])
def test_eager_double_backward_of_four_layers_takes_about_60_launches(name, dtype):
    found = counted(name, dtype)
    assert 45 <= found.network["double backward"].launches < found.step["double backward"].launches <= 75
    assert found.step["attribute"].launches < found.step["double backward"].launches


@by_dtype
@pytest.mark.parametrize("name", STEPS)
def test_layer_by_layer_a_step_moves_at_most_a_quarter_more_than_the_floor(name, dtype):
    found = counted(name, dtype)
    assert found.over_least(BY_LAYER) >= 1
    assert found.over_library(BY_LAYER) <= 1.25
    assert found.network[BY_LAYER].bytes < found.network["double backward"].bytes
    if STEPS[name].widths:
        assert found.least == found.library
    else:
        assert found.least < found.library
        assert found.over_library("attribute") <= 1.25  # as chosen, too
        assert found.over_least(BY_LAYER) <= 1.5


@by_dtype
@pytest.mark.parametrize("name", STEPS)
def test_as_chosen_a_step_moves_little_more_than_a_librarys_products_make_it(name, dtype):
    """A library's products are faster, and nothing but the result comes out of them: masks are taken and put apart."""
    p, found = on_meta(STEPS[name], dtype), counted(name, dtype)
    apart = least_bytes(layers_of(p), p.x.element_size(), p.chains, PRODUCTS)
    assert found.least < apart
    assert found.network["attribute"].bytes <= 1.15 * apart
    assert found.over_least("attribute") <= 1.65


@by_dtype
@pytest.mark.parametrize("name", STEPS)
def test_flops_are_the_least(name, dtype):
    found, layers = counted(name, dtype), count.layer_flops(on_meta(STEPS[name], dtype))
    assert found.flops == count.least_flops(layers, STEPS[name].chains)
    exact = 0 if STEPS[name].widths else 0.005  # the first layer of an image has few channels
    for who in ("attribute", BY_LAYER):
        assert found.over_flops(who) == pytest.approx(1, abs=exact)
        assert found.step[who].flops == found.network[who].flops
    assert found.network["plain"].flops == count.plain_flops(layers)
    assert found.network["double backward"].flops > 0.95 * found.flops


@pytest.mark.parametrize("case", [TINY, TINY_10, IMAGES], ids=lambda case: case.name)
def test_pytorch_runs_as_many_operators_on_a_cpu(case):
    """But that a GPU computes the two gradients of a convolution one by one."""
    here = count.count(network(double_backward)(pose(case))).launches
    _, launches = record(network(double_backward)(on_meta(case, "fp32")))
    twice = sum(one.name == "convolution_backward" for one in launches)
    assert len(launches) >= here
    assert len(launches) - here <= twice // 2
    assert twice == 0 or not case.widths


@pytest.mark.parametrize("case", [NARROW, DEEP], ids=lambda case: case.name)
def test_the_launches_are_those_of_a_driver_that_runs_them(case, emulated):
    p = pose(case, torch.bfloat16)
    with xa.use_backend("triton"):
        network(sweeps)(p)()
    ran = [one.name for one in emulated.launches]
    noted = of_sweeps(case, by_layer=not served(case, "bf16"))
    assert ran == [name for name in noted if name.endswith("_kernel")]
    assert ran


def test_a_launch_more_is_seen_and_so_is_a_byte_more(monkeypatch):
    p = on_meta(NARROW)
    before, _ = record(network(sweeps)(p))
    launcher = kernels.mlp_attribute

    def wasteful(x, *args):
        kernels.relu_mask(x)
        return launcher(x, *args)

    monkeypatch.setattr(kernels, "mlp_attribute", wasteful)
    after, launches = record(network(sweeps)(p))
    assert after.launches == before.launches + 1
    assert [one.name for one in launches].count("relu_mask_kernel") == 1
    mask = 4 * len(p.x)  # a word for the 20 elements of each row
    assert after.bytes == before.bytes + 2 * 2 * p.x.numel() + mask
    assert after.flops == before.flops


def test_a_product_that_is_written_twice_breaks_the_limit_of_bytes(monkeypatch):
    launcher = kernels.matmul_mask
    monkeypatch.setattr(kernels, "matmul_mask", lambda *args: launcher(*args).clone().mul(1))
    assert on_gpu(STEPS["image-1"], "bf16").over_library(BY_LAYER) > 1.25


@pytest.mark.filterwarnings("ignore:xattr_cuda. the Triton kernel")
def test_a_launcher_that_fails_is_no_count(monkeypatch):
    def broken(*args):
        raise ValueError("no such block shape")

    monkeypatch.setattr(kernels, "mlp_attribute", broken)
    with pytest.raises(
        RuntimeError, match="xattr::mlp_attribute: its launches cannot be recorded: ValueError: no such"
    ):
        record(network(sweeps)(on_meta(NARROW)))
    assert not gpu.failures


def test_without_kernels_nothing_is_counted_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(gpu, "missing", lambda: "Triton is not installed")
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        record(network(sweeps)(on_meta(NARROW)))
    m = Measurement(TINY, 1, {"plain": Result()})
    run.add_counts(m, TINY, lambda *_: None)
    assert m.on_gpu == []
    assert m.remarks == ["tiny: what a GPU would do is not counted: Triton is not installed"]


def test_nothing_is_left_behind():
    before = driver._active, JITFunction.run, gpu._faster, gpu.serves_perceptron
    with recorder(by_layer=True):
        assert (driver._active, JITFunction.run, gpu._faster, gpu.serves_perceptron) != before
    assert (driver._active, JITFunction.run, gpu._faster, gpu.serves_perceptron) == before


def test_what_pytorch_composes_of_others_is_counted_by_these():
    logits, truth = torch.empty(8, 1, device="meta"), torch.empty(8, 1, device="meta")
    with recorder() as mode:
        nn.functional.binary_cross_entropy_with_logits(logits, truth)
        logits.clone()
        logits.view(2, 4).t()
        torch.empty_like(logits)
    names = [one.name for one in mode.launches]
    assert len(names) > 3
    assert names[-1] == "copy_"  # of the clone
    assert "binary_cross_entropy_with_logits" not in names


def test_the_two_gradients_of_a_convolution_are_two_launches():
    x = torch.empty(2, 3, 8, 8, device="meta", requires_grad=True)
    weight = torch.empty(4, 3, 3, 3, device="meta", requires_grad=True)
    with recorder() as mode:
        nn.functional.conv2d(x, weight, padding=1).sum().backward()
    one = [launch.bytes for launch in mode.launches if launch.name == "convolution_backward"]
    g = 4  # the expanded gradient of a sum
    assert one == [g + 4 * (weight.numel() + x.numel())] * 2


def test_images_whose_channels_lie_last_are_not_copied_between_convolutions():
    names = of_sweeps(STEPS["small-vgg"])
    assert names.count("copy_") + names.count("clone") == 4  # on the way into and out of the rows of the linear layer


@pytest.mark.parametrize("chains", [1, 2])
def test_the_floor_of_a_perceptron_is_that_of_its_sweeps(chains):
    batch, widths, size = TINY.batch, TINY.widths, 4
    pairs = list(itertools.pairwise(widths))
    products = [size * (batch * k + batch * n + k * n) for k, n in pairs]
    masks, ends = sum(batch * n // 8 for n in widths[1:-1]), 3 * size * batch * widths[0]
    forward, attribution = sum(products) + masks, sum(products) + masks + ends
    tangent = ends + sum(products[:-1]) + masks
    cotangent = sum(products[1:]) + masks
    gradients = sum(size * (chains * batch * (k + n) + k * n) for k, n in pairs)
    want = forward + attribution + tangent + gradients + (cotangent if chains == 2 else 0)
    assert least_bytes(layers_of(on_meta(TINY)), size, chains) == want


def test_the_floor_of_images_counts_pools_and_masks_by_their_elements():
    layers = layers_of(on_meta(IMAGES))
    assert [one.kind for one in layers] == ["convolution", "relu", "max_pool2d_with_indices", "mm"]
    assert layers[-1].reads == (layers[-2],)
    image, maps, pooled, out = 5 * 2 * 36, 5 * 4 * 36, 5 * 36, 5 * 3
    weights = 4 * 2 * 9, 36 * 3
    first, last = 4 * (image + maps + weights[0]), 4 * (pooled + out + weights[1])
    sweep = first + 4 * (maps + pooled) + pooled + pooled // 8 + last
    gradients = 4 * (2 * (image + maps) + weights[0]) + 4 * (2 * (pooled + out) + weights[1])
    want = 4 * sweep - last - first + 2 * 3 * 4 * image + gradients
    assert least_bytes(layers, 4, 2) == want
    assert least_bytes(layers, 4, 2, library=["convolution"]) == want  # the activation follows the pool


class Residual(nn.Module):
    """x + relu(conv(x)), and the activation of that."""

    def __init__(self, dtype):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False, dtype=dtype)
        self.fc = nn.Linear(2 * 16, 1, bias=False, dtype=dtype)

    def forward(self, x):
        return self.fc((x + self.conv(x).relu()).relu().flatten(1))


def test_an_activation_that_others_read_too_does_not_follow_the_pool():
    class Both(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False, dtype=dtype)
            self.fc = nn.Linear(2 * 16, 1, bias=False, dtype=dtype)

        def forward(self, x):
            h = self.conv(x).relu()
            return self.fc((h + nn.functional.max_pool2d(h, 3, 1, 1)).flatten(1))

    layers = layers_of(on_meta(Case("both", "", Both, (2, 4, 4), 3, 1, 1)))
    n = 3 * 2 * 16
    assert least_bytes(layers, 4, 1, library=["convolution"]) == least_bytes(layers, 4, 1) + 3 * (2 * 4 * n + 2 * 4 * n)


def test_the_floor_of_a_sum_is_its_other_summand():
    layers = layers_of(on_meta(Case("residual", "", Residual, (2, 4, 4), 3, 1, 1)))
    n, weights = 3 * 2 * 16, (2 * 2 * 9, 32)
    first, last = 4 * (2 * n + weights[0]), 4 * (n + 3 + weights[1])
    gradients = first + last
    want = 3 * (first + last + 4 * n + 2 * (n // 8)) - last + 2 * 3 * 4 * n + gradients
    assert least_bytes(layers, 4, 1) == want
    assert least_bytes(layers, 4, 1, library=["convolution"]) == want + 3 * (2 * 4 * n + 2 * 4 * n)


def test_an_operator_without_a_floor_is_refused():
    case = Case("tanh", "", lambda dtype: nn.Sequential(nn.Linear(3, 1, bias=False), nn.Tanh()), (3,), 2, 1, 1)
    with pytest.raises(ValueError, match="there is no least traffic of operator 'tanh'"):
        layers_of(on_meta(case, "fp32"))


def test_flops_without_a_formula_are_not_reported(monkeypatch):
    monkeypatch.setattr(count, "WITHOUT_PRODUCTS", ())
    found = on_gpu(IMAGES, "fp32")
    assert found.over_flops("attribute") is None
    assert "flops" not in found.to_json()["counts"]["attribute"]["step"]
    assert "flops" in found.to_json()["counts"]["plain"]["step"]


def test_the_table_fits_80_columns_and_loses_no_word():
    measured = [Measurement(STEPS[name], 1, {}, on_gpu=[counted(name, d) for d in DTYPES]) for name in STEPS]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(report.on_gpu_table(measured))
        console.print(report.ON_GPU_WORDS)
    text = captured.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in (*STEPS, "whole", "layers", "fp32", "bf16"))
    assert "| narrow | bf16 | whole | 4/" in report.on_gpu_markdown(measured)
    content = json.loads(json.dumps(measured[3].to_json()))["on a GPU"]["bf16"]
    assert content["counts"]["attribute"]["network"]["launches"] == 4
    assert content["least bytes"] > content["counts"]["attribute"]["network"]["bytes"]


def test_tensors_without_values_take_the_way_of_a_gpus_and_have_its_shapes():
    p = on_meta(NARROW)
    output, attribution = xa.attribute(p.model, p.x)
    assert output.shape == (21, 1)
    assert attribution.shape == p.x.shape
    assert output.is_meta
