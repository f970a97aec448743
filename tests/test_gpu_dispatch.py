"""Which implementation an operator runs on: Triton kernels that work, fail or are missing, without a GPU."""

import subprocess
import sys
import types
import warnings

import pytest
import torch

import xattr_cuda as xa
from xattr_cuda.cli import health
from xattr_cuda.ops import gpu

WARNING = "GPU tensors run on the PyTorch reference instead"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No failure is on record, nothing has been warned of, and what a test leaves there is forgotten."""
    monkeypatch.setattr(gpu, "failures", {})
    imported = gpu._kernels
    gpu._warn_once.cache_clear()
    yield
    gpu._warn_once.cache_clear()
    imported.cache_clear()


@pytest.fixture
def without_triton(monkeypatch):
    for name in [*sys.modules]:
        if name.startswith("xattr_cuda.kernels.triton"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    gpu._kernels.cache_clear()


class Kernels:
    """Stands in for the launchers: counts the calls of one, and raises what it is told to."""

    def __init__(self, monkeypatch, name, error=None, result=None):
        self.calls = 0

        def launcher(*args):
            self.calls += 1
            if error is not None:
                raise error
            return result

        monkeypatch.setattr(gpu, "_kernels", lambda: (types.SimpleNamespace(**{name: launcher}), ""))


def run(name, *args):
    """The operator as PyTorch calls it for the tensors of a GPU."""
    return gpu.RUNNERS[name](*args)


def assert_reference(z, result):
    h, bits = xa.ops.relu_mask(z)
    assert torch.equal(result[0], h)
    assert torch.equal(result[1], bits)


@pytest.mark.parametrize("name", xa.ops.SCHEMAS)
def test_every_operator_is_registered_for_gpu_tensors(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"xattr::{name}", "CUDA")


def test_importing_the_package_does_not_import_triton_and_neither_does_asking_for_it_without_a_gpu():
    code = "import sys, torch, xattr_cuda as xa\nbefore = 'triton' in sys.modules\n"
    code += "torch.cuda.is_available = lambda: False\n"
    code += "assert 'sees no GPU' in xa.ops.unavailable('triton')\nassert before or 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_triton_warns_once_and_runs_the_reference(without_triton):
    z = torch.randn(3, 33)
    with pytest.warns(UserWarning, match=f"Triton is not installed; pip install.*{WARNING}"):
        assert_reference(z, run("relu_mask", z))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_reference(z, run("relu_mask", z))
        assert torch.equal(run("mask_mul", z, xa.ops.relu_mask(z)[1]), z.relu())


def test_missing_triton_refuses_to_be_forced(without_triton, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "_too_old", lambda index: "")
    with pytest.raises(RuntimeError, match="back end 'triton' cannot run: Triton is not installed; pip install"):
        xa.use_backend("triton").__enter__()


def test_an_installation_whose_import_fails_says_why(monkeypatch):
    def fail(*_):
        raise OSError("libcuda.so.1: no such file")

    gpu._kernels.cache_clear()
    monkeypatch.setattr(gpu.importlib, "import_module", fail)
    assert gpu._kernels() == (None, "the Triton kernels cannot be imported: OSError: libcuda.so.1: no such file")


def test_a_kernel_that_fails_warns_once_is_not_tried_again_and_runs_the_reference(monkeypatch):
    kernels = Kernels(monkeypatch, "relu_mask", RuntimeError("\nPTXAS error: out of registers\nmore"))
    z = torch.randn(3, 33)
    reason = "the Triton kernel of xattr::relu_mask fails: RuntimeError: PTXAS error: out of registers"
    with pytest.warns(UserWarning, match=f"{reason}. {WARNING}"):
        assert_reference(z, run("relu_mask", z))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_reference(z, run("relu_mask", z))
    assert kernels.calls == 1
    assert gpu.failures == {"relu_mask": "RuntimeError: PTXAS error: out of registers"}


def test_a_kernel_that_fails_is_an_error_where_triton_is_forced(monkeypatch):
    kernels = Kernels(monkeypatch, "relu_mask", RuntimeError("PTXAS error"))
    monkeypatch.setattr(gpu, "forced", True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="xattr::relu_mask: its Triton kernel fails: PTXAS error"):
            run("relu_mask", torch.randn(3, 33))
    assert kernels.calls == 2
    assert not gpu.failures


def test_running_out_of_memory_is_no_reason_to_try_the_reference(monkeypatch):
    Kernels(monkeypatch, "relu_mask", torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        run("relu_mask", torch.randn(3, 33))
    assert not gpu.failures


def test_a_device_that_is_too_old_runs_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old GPU")
    gpu._too_old.cache_clear()
    assert gpu._too_old(7) == "Old GPU has compute capability 7.5; the kernels need 8.0"
    gpu._too_old.cache_clear()


@pytest.mark.parametrize("forced", [False, True], ids=["auto", "forced"])
def test_what_a_kernel_does_not_serve_runs_the_reference_without_a_word(monkeypatch, forced):
    kernels = Kernels(monkeypatch, "relu_mask", result=NotImplemented)
    monkeypatch.setattr(gpu, "forced", forced)
    wide, z, other = torch.randn(3, 33).double(), torch.randn(3, 33), torch.rand(5)
    assert_reference(wide, run("relu_mask", wide))
    assert kernels.calls == 0
    assert_reference(z, run("relu_mask", z))
    assert kernels.calls == 1
    assert torch.equal(run("gini", other)[0], xa.kernels.reference.gini(other)[0])  # has no launcher here


def test_arguments_are_checked_before_a_kernel_sees_them(monkeypatch):
    kernels = Kernels(monkeypatch, "relu_mask")
    with pytest.raises(ValueError, match=r"xattr::relu_mask: `slope` has shape \[2\]"):
        run("relu_mask", torch.randn(3, 33), torch.rand(2))
    assert kernels.calls == 0


def test_a_forced_triton_refuses_cpu_tensors_where_its_driver_does_not_take_them(monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda: "")
    monkeypatch.setattr(gpu, "executes_cpu_tensors", lambda: False)
    message = "back end 'triton' was forced, but the tensors are on cpu; move them to 'cuda' or use 'reference'"
    with xa.use_backend("triton"):
        with pytest.raises(RuntimeError, match=f"xattr::relu_mask: {message}"):
            xa.ops.relu_mask(torch.randn(3))
        with pytest.raises(RuntimeError, match=message):
            xa.attribute(xa.models.xmlp([3, 2, 1]), torch.randn(4, 3))


def test_a_forced_triton_runs_its_kernels_on_cpu_tensors_in_the_emulator(emulated):
    z = torch.randn(3, 33)
    with xa.use_backend("triton"):
        h, bits = xa.ops.relu_mask(z)
        out = xa.ops.mask_mul(z, bits)
        wide = xa.ops.relu_mask(z.double())[0]
    assert [launch.name for launch in emulated.launches] == ["relu_mask_kernel", "mask_mul_kernel"]
    assert torch.equal(h, z.relu())
    assert torch.equal(out, z.relu())
    assert torch.equal(wide, z.double().relu())


def test_operators_stay_differentiable_where_triton_is_forced(emulated):
    z, slope = torch.randn(3, 33, requires_grad=True), torch.rand(33, requires_grad=True)
    with xa.use_backend("triton"):
        h, _ = xa.ops.relu_mask(z, slope)
        found = torch.autograd.grad(h.sin().sum(), (z, slope))
    assert emulated.launches[0].name == "relu_mask_kernel"
    wanted = torch.autograd.grad(torch.where(z > 0, z, slope * z).sin().sum(), (z, slope))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w)


def test_the_default_leaves_cpu_tensors_to_the_cpu_kernels_even_in_the_emulator(emulated):
    xa.ops.relu_mask(torch.randn(3, 33))
    with xa.use_backend("reference"):
        xa.ops.relu_mask(torch.randn(3, 33))
    assert not emulated.launches


def test_a_forced_reference_never_reaches_the_dispatcher(monkeypatch):
    monkeypatch.setattr(xa.ops.backend, "_dispatched", {})
    z = torch.randn(3, 33)
    with xa.use_backend("reference"):
        assert torch.equal(xa.ops.relu_mask(z)[0], z.relu())


def test_a_forced_cuda_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(gpu, "NATIVE", frozenset())
    with pytest.raises(RuntimeError, match="'cuda' cannot run: the extension was built without CUDA kernels; install"):
        xa.use_backend("cuda").__enter__()
    monkeypatch.setattr(gpu, "NATIVE", frozenset(["relu_mask"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match=r"'cuda' cannot run: torch .* sees no GPU"):
        xa.use_backend("cuda").__enter__()


@pytest.fixture
def native(monkeypatch):
    """An extension with a kernel in CUDA C++ for relu_mask, on a GPU that it was built for; yields its switches."""
    switches = []
    extension = types.SimpleNamespace(
        set_cuda_kernels=lambda *on: switches.append(on), has_cuda_code=lambda device: device == 0
    )
    monkeypatch.setattr(gpu, "NATIVE", frozenset(["relu_mask"]))
    monkeypatch.setattr(gpu, "extension", extension)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return switches


def test_kernels_in_cuda_are_off_while_triton_is_forced_and_on_otherwise(native, monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda: "")
    with xa.use_backend("cuda"):
        assert native == [(True, True)]
        with xa.use_backend("triton"):
            assert native == [(True, True), (False, False)]
        assert native == [(True, True), (False, False), (True, True)]
        with pytest.raises(RuntimeError, match="back end 'cuda' was forced, but the tensors are on cpu"):
            xa.attribute(xa.models.xmlp([3, 2, 1]), torch.randn(4, 3))
    assert native == [(True, True), (False, False), (True, True), (True, False)]


def test_a_gpu_that_the_kernels_were_not_built_for_is_named(native, monkeypatch):
    assert xa.ops.unavailable("cuda") == ""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Another GPU")
    assert "not built for Another GPU; reinstall with its TORCH_CUDA_ARCH_LIST" in xa.ops.unavailable("cuda")


def test_doctor_shows_what_serves_each_operator(native, monkeypatch):
    monkeypatch.setattr(gpu, "serves", lambda name, t: name != "gini")
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    found = {name: on_gpu for name, (_, on_gpu) in health.operators().items()}
    assert found["relu_mask"] == "cuda"
    assert found["mask_mul"] == "triton"
    assert found["gini"] == "reference"


def test_doctor_says_why_triton_cannot_run(monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda: "Triton is not installed; pip install 'xattr_cuda[triton]'")
    found = {backend.name: backend for backend in health.backends()}
    assert found["triton"] == health.BackendHealth("triton", "not here", gpu.unavailable())


def test_doctor_shows_a_kernel_that_fails(monkeypatch, emulated):
    Kernels(monkeypatch, "relu_mask", RuntimeError("PTXAS error"))
    words = "it fails: xattr::relu_mask: its Triton kernel fails: PTXAS error"
    assert health._checked("triton") == health.BackendHealth("triton", "wrong", words)
