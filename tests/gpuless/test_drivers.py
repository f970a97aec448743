"""Triton's launches on CPU tensors: executed by the emulating driver, or compiled and recorded."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
from triton.runtime.driver import driver as active_driver
from triton.runtime.errors import OutOfResources

from gpuless import samples
from gpuless.drivers import RecordingDriver, installed
from gpuless.emulator import PtxError

BLOCKS = {"BM": 64, "BN": 64, "BK": 32, "PRECISION": "ieee"}


def grid(tensors):
    rows, columns = tensors[0].shape[0], tensors[1].shape[0]
    return lambda meta: (triton.cdiv(rows, meta["BM"]), triton.cdiv(columns, meta["BN"]))


SHAPES = [
    (torch.float16, (100, 200, 72), 2e-3),
    (torch.bfloat16, (100, 200, 72), 2e-2),
    (torch.float32, (100, 200, 70), 1e-5),
    (torch.float16, (128, 128, 1), 2e-3),
]


@pytest.mark.parametrize(("dtype", "shape", "tolerance"), SHAPES, ids=str)
def test_a_launch_is_compiled_and_executed(emulated, dtype, shape, tolerance):
    x, w, y, bits = samples.linear_tensors(*shape, dtype)
    samples.linear_relu_mask[grid((x, w))](*samples.linear_args(x, w, y, bits), **BLOCKS)
    want = (x.double() @ w.double().T).relu()
    assert ((y.double() - want).abs() / (1 + want)).max() < tolerance
    (launch,) = emulated.launches
    assert launch.name == "linear_relu_mask"
    assert launch.steps > 100


def test_a_view_that_does_not_start_at_its_storage(emulated):
    w = torch.randn(140, 72).half()[12:]
    x, _, y, bits = samples.linear_tensors(100, 128, 72, torch.float16)
    samples.linear_relu_mask[grid((x, w))](*samples.linear_args(x, w, y, bits), **BLOCKS)
    torch.testing.assert_close(y.double(), (x.double() @ w.double().T).relu(), atol=2e-2, rtol=2e-3)


def test_autotuning_runs_every_configuration(emulated):
    configs = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((64, 1), (128, 4), (256, 4))]
    tuned = triton.autotune(configs, key=["n"])(samples.scale)
    x, y = torch.randn(300), torch.empty(300)
    tuned[lambda meta: (triton.cdiv(300, meta["BLOCK"]),)](x, y, 300, 3.0)
    assert torch.equal(y, 3 * x)
    assert len(emulated.launches) == len(configs) + 1


def test_a_missing_mask_is_found_out(emulated):
    x, y = torch.randn(256), torch.empty(200)
    with pytest.raises(PtxError, match="global out of bounds"):
        samples.scale_without_a_mask[(2,)](x, y, 200, 2.0, BLOCK=128)
    samples.scale[(2,)](x, y, 200, 2.0, BLOCK=128)
    assert torch.equal(y, 2 * x[:200])


def test_a_driver_is_active_inside_its_block_alone(emulated):
    assert active_driver._active is emulated
    with installed(RecordingDriver()) as other:
        assert active_driver._active is other
        assert not other.executes_cpu_tensors
    assert active_driver._active is emulated
    with pytest.raises(ZeroDivisionError), installed(RecordingDriver()):
        raise ZeroDivisionError
    assert active_driver._active is emulated
    assert emulated.executes_cpu_tensors


def test_a_recorded_launch_leaves_its_outputs_alone():
    tensors = samples.linear_tensors(256, 256, 256, torch.float16)
    with installed(RecordingDriver(90)) as driver:
        samples.linear_relu_mask[grid(tensors)](*samples.linear_args(*tensors), **BLOCKS)
    assert driver.launches[0][:2] == ("linear_relu_mask", (4, 4, 1))
    assert tensors[2].isnan().all()


def test_a_missing_argument_is_an_error():
    tensors = samples.linear_tensors(64, 64, 64, torch.float16)
    with installed(RecordingDriver(90)), pytest.raises(TypeError, match="stride_bits"):
        samples.linear_relu_mask[grid(tensors)](*samples.linear_args(*tensors)[:-1], **BLOCKS)


def test_a_block_may_not_have_more_shared_memory_than_the_device_has():
    tensors = samples.linear_tensors(256, 256, 256, torch.float16)
    large = {**BLOCKS, "BM": 128, "BN": 128, "BK": 64, "num_stages": 4}
    with installed(RecordingDriver(90)):
        samples.linear_relu_mask[grid(tensors)](*samples.linear_args(*tensors), **large)
    with installed(RecordingDriver(90, shared_limit=49_152)), pytest.raises(OutOfResources, match="shared memory"):
        samples.linear_relu_mask[grid(tensors)](*samples.linear_args(*tensors), **large)
