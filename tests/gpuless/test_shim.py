"""The shim: CUDA C++ under g++ computes what a GPU would, and its faults are found."""

import re
from pathlib import Path

import pytest
import torch
from cases import pack_bits

from . import shim
from .shim import ORDERS, ShimError, build
from .toolchain import needs_shim

pytestmark = needs_shim

SAMPLES = (Path(__file__).parent / "shim" / "samples.cuh").read_text()
DRIVERS = {
    "relu": """
void run(const cuemu::Arguments& a) {
  const int n = a.integer(4);
  cuemu::launch((n + 127) / 128, 128, 0, [&] {
    relu_pack_sum(a.pointer<float>(0), a.pointer<float>(1), a.pointer<uint32_t>(2), a.pointer<float>(3), n);
  });
}""",
    "product": """
void run(const cuemu::Arguments& a) {
  cuemu::launch(1, 64, 2 * 32 * 24 * 2, [&] {
    small_product(a.pointer<__half>(0), a.pointer<__half>(1), a.pointer<float>(2), a.integer(3));
  });
}""",
    "divergent": """
void run(const cuemu::Arguments& a) {
  cuemu::launch(1, 32, 0, [&] { divergent_barrier(a.pointer<float>(0)); });
}""",
}
BARRIER, WAIT, ARRIVED = "parts", "stage", "arrived"  # the remarks beside them in the samples


def program(driver, mode, without=""):
    """A driver's program without the statement beside a remark."""
    text, count = re.subn(rf"\S+;\s+// {without}\n", "\n", SAMPLES)
    assert count == 1 or not without
    return build((text if without else SAMPLES) + DRIVERS[driver], mode)


def run_relu(program, short=0, **options):
    x = torch.randn(300)
    y, bits, total = torch.full((300 - short,), torch.nan), torch.zeros(10, dtype=torch.int32), torch.zeros(1)
    program.run(x, y, bits, total, 300, **options)
    torch.testing.assert_close(y, x.relu(), rtol=0, atol=0)
    assert torch.equal(bits, pack_bits(x[None] > 0)[0])
    torch.testing.assert_close(total[0], x.relu().sum())


def run_product(program, **options):
    x, w, y = torch.randn(16, 64).half(), torch.randn(8, 64).half(), torch.full((2, 16, 8), torch.nan)
    program.run(x, w, y, 64, **options)
    for found in y:
        torch.testing.assert_close(found, (x.double() @ w.double().T).float())


def is_caught(run, driver, mode, without, **options):
    """Whether anything is seen of a fault: what the program says, a wrong value."""
    faulty = program(driver, mode, without)
    try:
        run(faulty, **options)
    except ShimError as error:
        return str(error)
    except AssertionError:
        return "wrong values"
    return ""


@pytest.mark.parametrize("mode", shim.MODES)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_kernels_compute_what_they_say(mode, order):
    run_product(program("product", mode), environment=order)
    run_relu(program("relu", mode), environment=order)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_missing_barrier_gives_wrong_values(order):
    assert is_caught(run_relu, "relu", "plain", BARRIER, environment=order) == "wrong values"


def test_a_missing_barrier_is_a_race():
    assert "data race" in is_caught(run_product, "product", "threads", ARRIVED)


def test_a_copy_into_a_buffer_in_use_is_a_race():
    early = ORDERS[-1]
    assert "data race" in is_caught(run_product, "product", "threads", ARRIVED, environment=early)


def test_a_missing_wait_for_a_copy_is_found():
    assert is_caught(run_product, "product", "plain", WAIT)


def test_an_access_out_of_bounds_is_found():
    with pytest.raises(ShimError, match="heap-buffer-overflow"):
        run_relu(program("relu", "sanitized"), short=1)


def test_a_barrier_that_not_all_reach_is_found():
    with pytest.raises(ShimError, match="deadlock"):
        program("divergent", "plain").run(torch.zeros(32))


def test_numbers_and_buffers_arrive_as_they_are():
    driver = """
    void run(const cuemu::Arguments& a) {
      if (a.pointer<float>(3) != nullptr) cuemu::die("not null");
      a.pointer<float>(0)[0] = static_cast<float>(a.integer(1)) + static_cast<float>(a.real(2));
    }"""
    y = torch.zeros(2, 3)
    build(driver).run(y[1, 1:], -7, 0.5, None)
    assert y.tolist() == [[0, 0, 0], [0, -6.5, 0]]


def test_a_warning_is_an_error():
    with pytest.raises(ShimError, match="warning"):
        build("void run(const cuemu::Arguments&) { int unused; }")
