"""The limits of the compile report: every kernel keeps them, and kernels that do not are found out."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from triton.runtime.jit import JITFunction

from gpuless import cuda_report, launchers, offline, samples, toolchain
from gpuless import kernel_report as report


def entry(variant, arch):
    (found,) = report.entries_of([variant], arch)
    return found


@pytest.mark.parametrize("job", report.jobs(), ids="-".join)
def test_a_kernel_spills_nothing_fits_the_chip_and_uses_its_units(job):
    """In every configuration, on every architecture."""
    found = report.kernel_entries(*job)
    assert found
    assert {one.config: one.faults for one in found if one.faults} == {}


def test_every_kernel_has_variants():
    covered = {kernel for kernel, _ in report.jobs()}
    kernels = {
        name
        for module in report.modules()
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    }
    assert kernels
    assert not kernels - covered, "kernels without a variant"


@toolchain.needs_nvcc
@pytest.mark.parametrize("job", cuda_report.jobs(report.ARCHITECTURES), ids="-".join)
def test_a_kernel_in_cuda_spills_nothing_and_moves_whole_vectors(job):
    found = report.cuda_entries(*job)
    assert found
    for one in found:
        assert one.faults == (), f"{one.kernel} {one.config}"
        assert one.registers > 0
        assert one.config.startswith(("fp32", "bf16", "fp16"))


@toolchain.needs_nvcc
def test_faults_of_kernels_in_cuda_are_found(monkeypatch):
    (kernel, *_) = cuda_report.compiled(launchers.driver("relu_mask"), "80")
    narrow = kernel._replace(name="a_vectors", code=replace(kernel.code, ops=Counter({"LDG.E.64": 4})))
    assert "narrow accesses" in cuda_report.faults(narrow)[0]
    spilled = kernel._replace(code=replace(kernel.code, local_bytes=8))
    assert "local memory" in cuda_report.faults(spilled)[0]
    monkeypatch.setattr(launchers, "driver", lambda op: "__global__ void f() { return 1; }")
    (line,) = report.cuda_entries("relu_mask", "80")
    assert line.faults
    assert line.backend == "cuda"


# ---- kernels that are wrong on purpose ----


def sample(config="s-fp16", gemm=True, elementwise=False, warps=4, stages=2, precision="ieee", **blocks):
    constants = {"BM": 64, "BN": 64, "BK": 32, "PRECISION": precision} | blocks
    return SimpleNamespace(
        kernel=samples.linear_relu_mask,
        signature=samples.LINEAR_TYPES,
        constants=constants,
        divisible=samples.LINEAR_DIVISIBLE,
        num_warps=warps,
        num_stages=stages,
        config=config,
        gemm=gemm,
        elementwise=elementwise,
        architectures=report.ARCHITECTURES,
    )


def scaling(divisible=("x_ptr", "y_ptr", "n")):
    types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "factor": "fp32"}
    common = {"constants": {"BLOCK": 1024}, "num_warps": 4, "num_stages": 1, "config": "s-fp32", "gemm": False}
    return SimpleNamespace(
        kernel=samples.scale,
        signature=types,
        divisible=divisible,
        elementwise=True,
        architectures=report.ARCHITECTURES,
        **common,
    )


@pytest.mark.parametrize("arch", report.ARCHITECTURES)
def test_good_kernels_have_no_faults(arch):
    for variant in (sample(), scaling()):
        found = entry(variant, arch)
        assert found.faults == ()
        assert 0 < found.registers <= 256
        assert 0 < found.occupancy <= 1


@pytest.mark.parametrize("arch", ["80", "gfx942"])
def test_spills_are_a_fault(arch):
    found = entry(sample(warps=1, BM=128, BN=128), arch)
    assert found.spill_bytes > 0
    assert "local memory" in found.faults[0]


@pytest.mark.parametrize(("arch", "stages"), [("80", 8), ("90", 8), ("gfx942", 4)])
def test_too_much_shared_memory_is_a_fault(arch, stages):
    found = entry(sample(stages=stages, warps=8, BM=128, BN=128, BK=64), arch)
    assert any("shared memory" in fault for fault in found.faults)


def test_a_product_without_tensor_cores_is_a_fault_unless_it_is_exact():
    exact = sample("s-ieee-fp32")
    exact.signature = {name: kind.replace("fp16", "fp32") for name, kind in samples.LINEAR_TYPES.items()}
    assert entry(exact, "90").faults == ()
    exact.config = "s-tf32-fp32"
    assert entry(exact, "90").faults == ("a product without tensor cores",)


def test_narrow_accesses_are_a_fault():
    assert "narrow accesses" in entry(scaling(divisible=()), "90").faults[0]


def test_the_report_is_written_and_its_exit_status_says_whether_all_is_well(tmp_path, monkeypatch, capsys):
    found = [entry(scaling(), "90"), entry(scaling(divisible=()), "90")]
    monkeypatch.setattr(report, "entries", lambda architectures, processes: found)
    output = tmp_path / "folder" / "report.json"
    assert report.main(["--output", str(output)]) == 1
    written = json.loads(output.read_text())
    assert [one["arch"] for one in written] == ["sm_90", "sm_90"]
    for key in ("backend", "kernel", "config", "registers", "spill_bytes", "local_bytes", "shared_bytes"):
        assert key in written[0]
    assert written[0]["wide_memory_ops"] > 0
    assert written[0]["tensor_core_ops"] == 0
    assert "1 with faults" in capsys.readouterr().out
    monkeypatch.setattr(report, "entries", lambda architectures, processes: found[:1])
    assert report.main(["--output", str(output)]) == 0


def test_an_unknown_architecture_is_refused():
    with pytest.raises(SystemExit):
        report.main(["75"])


def test_an_error_of_the_compiler_is_a_line_of_its_own():
    broken = sample()
    broken.constants = {**broken.constants, "BM": 48}
    found = report.entries_of([broken, scaling()], "90")
    assert [bool(one.faults) for one in found] == [True, False]
    assert (found[0].registers, found[0].arch) == (0, "sm_90")


def test_instructions_belong_to_their_kernel(monkeypatch):
    """Of several kernels that are disassembled at once."""
    chosen = [scaling(), sample(), scaling(divisible=())]
    together = report.entries_of(chosen, "90")
    assert together == [entry(one, "90") for one in chosen]
    assert [bool(one.tensor_core_ops) for one in together] == [False, True, False]
    assert [bool(one.wide_memory_ops) for one in together[::2]] == [True, False]
    monkeypatch.setattr(offline, "tool", lambda *given: "/*0000*/ EXIT ;")
    assert offline.disassembled([bytes(16)], "90") == [["EXIT"]]
    for length in (0, 32):
        with pytest.raises(ValueError, match="another number of instructions"):
            offline.disassembled([bytes(length)], "90")
