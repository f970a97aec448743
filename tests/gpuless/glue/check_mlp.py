"""Run by test_cuda_glue.py in a process of its own: the mlp_* operators through their glue, on CPU tensors.

python check_mlp.py LIBRARY SEED
"""

import sys
import types

import pytest
import torch

torch.ops.load_library(sys.argv[1])
torch.manual_seed(int(sys.argv[2]))

from gpuless.perceptrons import (  # noqa: E402
    CHAINS,
    Operators,
    assert_gradients_right,
    assert_sweeps_right,
    exact,
    nearest,
    net,
)

from xattr_cuda.kernels import reference  # noqa: E402
from xattr_cuda.ops import gpu  # noqa: E402

OPS = ("mlp_attribute", "mlp_attribute_backward")
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
glue = torch.ops.xattr_glue
gpu.extension = types.SimpleNamespace(set_cuda_kernels=glue.use)

fallen: list[str] = []
below = torch.library.Library("xattr_below", "IMPL")


def falls(name):
    def run(*args):
        fallen.append(name)
        return getattr(reference, name)(*args)

    return run


def through_glue(name):
    """What PyTorch runs for the tensors of a GPU."""
    return lambda *args: getattr(torch.ops.xattr, name).default.redispatch(CUDA, *args)


for name in OPS:
    below.impl(name, falls(name), "CPU")


def check(args, factor=exact, chains=CHAINS):
    """Values, and how many kernels have been launched for them."""
    ops, before = Operators(*map(through_glue, OPS), factor), glue.launches()
    assert_sweeps_right(ops, args)
    for one in chains:
        assert_gradients_right(ops, args, one)
    return glue.launches() - before


def falls_through(args):
    fallen.clear()
    assert check(args, chains=("both",)) == 0
    assert set(fallen) == set(OPS)
    fallen.clear()


def goes_by_layers(args):
    assert check(args, chains=("own", "both")) == 0
    assert not fallen


assert set(OPS) <= gpu.NATIVE
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for widths, rows in (((16, 5), 70), ((7, 5, 3, 2), 17), ((37, 130, 33, 1), 70)):
        assert check(net(widths, rows, dtype)) == 1 + 3 * (1 + 1)
torch.set_float32_matmul_precision("high")
assert check(net((37, 130, 33, 1), 70, torch.float32), nearest) > 0
torch.set_float32_matmul_precision("highest")
for processors, rows in ((1, 131), (2, 131), (132, 33), (132, 300)):  # tiles of 64, of 32, of 16 rows; three parts
    glue.pretend(90, processors)
    assert check(net((20, 33, 2), rows, torch.bfloat16), chains=("both",)) > 0
assert not fallen

assert check(net((20, 33, 2), 0, torch.bfloat16)) == 0
assert not fallen
args = net((20, 33, 2), 40, torch.bfloat16)
everything, nothing = through_glue("mlp_attribute")(*args), through_glue("mlp_attribute")(*args[:4], [], [])
assert all(torch.equal(one, other) for one, other in zip(everything[:2], nothing[:2], strict=True))
assert nothing[3] == nothing[4] == []
turned = args._replace(
    x=args.x.T.contiguous().T, u=args.u.T.contiguous().T, weights=[w.T.contiguous().T for w in args.weights]
)
assert check(turned) > 0
assert not fallen

falls_through(net((20, 33, 2), 9, torch.float64))
goes_by_layers(net((20, 513, 2), 9, torch.float32))
goes_by_layers(net((3,) * 18, 9, torch.float32))
glue.pretend(86, 4)
goes_by_layers(net((512,) * 16, 9, torch.float32))  # the masks of so many layers leave no room
assert check(net((512, 512, 2), 9, torch.float32), chains=("both",)) > 0
assert not fallen

glue.exhaust(True)  # memory: layer by layer needs less of it
goes_by_layers(net((37, 130, 33, 2), 70, torch.bfloat16))
glue.exhaust(False)

glue.use(True, False)  # not forced: whatever was the fastest
goes_by_layers(net((37, 130, 33, 1), 70, torch.float32))
goes_by_layers(net((5, 4, 3), 0, torch.float32))
goes_by_layers(net((700, 600, 2), 9, torch.bfloat16))
goes_by_layers(net((5, 4), 3, torch.float32))
falls_through(net((37, 130, 33, 1), 70, torch.bfloat16))
turned = net((20, 33, 2), 40, torch.float32)
goes_by_layers(turned._replace(x=turned.x.T.contiguous().T, weights=[w.T.contiguous().T for w in turned.weights]))
glue.use(True, True)

x, weights, slopes, u, keep_h, keep_g = net((4, 3, 2), 5, torch.float32)
wrong = {
    "`u` is": lambda: through_glue("mlp_attribute")(x, weights, slopes, u[:, :1], keep_h, keep_g),
    "`slopes` has": lambda: through_glue("mlp_attribute")(x, weights, [], u, keep_h, keep_g),
    "both None": lambda: through_glue("mlp_attribute_backward")(
        *(None, None, None, None, None, weights, slopes, [], [], [], [1], False, False)
    ),
}
for message, run in wrong.items():
    with pytest.raises(ValueError, match=message):
        run()
print("works")
