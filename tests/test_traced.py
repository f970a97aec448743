"""What torch.compile sees of the operators: their Triton kernels, which run in the emulator, or one node."""

import importlib
import warnings

import pytest
import torch
from calls import drawn
from functorch.compile import make_boxed_func
from steps import convnet
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.codegen.wrapper import user_defined_triton_kernel_transitive_closure_source_code as source_of
from torch._library.triton import get_triton_kernels_for_op
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not installed")

from gpuless import kernel_report
from triton.runtime.jit import JITFunction
from xattr_cuda.kernels.triton import launching

import xattr_cuda as xa
from xattr_cuda.kernels import triton as kernels
from xattr_cuda.ops import gpu, traced

WRAPPER = torch.ops.higher_order.triton_kernel_wrapper_functional


@pytest.fixture
def seen(monkeypatch, emulated):
    """CPU tensors are taken for those of a GPU where a graph is compiled."""
    monkeypatch.setattr(traced, "_on_kernels", lambda t: True)
    return emulated


@pytest.fixture
def forced(monkeypatch):
    """Products are those of the package's kernels."""
    monkeypatch.setattr(gpu, "forced", True)


class Compiler:
    """A back end of torch.compile that keeps the graphs of forward and backward passes and runs them as they are."""

    def __init__(self):
        self.graphs = []
        torch.compiler.reset()

    def __call__(self, function, **options):
        def keep(graph, inputs):
            self.graphs.append(graph)
            return make_boxed_func(graph.forward)

        return torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True, **options)

    def count(self, wanted):
        """Nodes with that target, or operators of the namespace `wanted`."""
        targets = [node.target for graph in self.graphs for node in graph.graph.nodes if node.op == "call_function"]
        return sum(target is wanted or str(target).startswith(f"{wanted}.") for target in targets)


OPS = [name for name in xa.ops.SCHEMAS if name not in traced.OPAQUE]


@pytest.mark.parametrize("op", OPS)
def test_a_graph_has_the_kernels_of_an_operator_and_their_results(op, seen, forced):
    args = drawn(op)
    want = getattr(kernels, op)(*args)
    launched = [launch.name for launch in seen.launches]
    seen.launches.clear()
    compiler = Compiler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = compiler(getattr(xa.ops, op))(*args)
    assert compiler.count(WRAPPER) == len(launched) > 0
    assert compiler.count("xattr") == 0
    assert [launch.name for launch in seen.launches] == launched
    assert all(torch.equal(g, w) for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True))


def test_arguments_are_not_written_to(seen, forced):
    args = drawn("matmul_mask")
    compiler = Compiler()
    compiler(xa.ops.matmul_mask)(*args)
    (node,) = [node for node in compiler.graphs[0].graph.nodes if node.target is WRAPPER]
    assert node.kwargs["tensors_to_clone"] == ["out_ptr"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_has_kernels_both_ways_and_every_gradient(memory_format, seen):
    model = convnet(3, 8, 2).to(memory_format=memory_format)
    x = torch.randn(3, 3, 16, 16).contiguous(memory_format=memory_format)

    def loss(x):
        output, attribution = xa.attribute(model, x, 1)
        return output.square().mean() + xa.priors.l1(attribution)

    def gradients(function):
        model.zero_grad(set_to_none=True)
        function(x).backward()
        return [p.grad for p in model.parameters()]

    want = gradients(loss)
    compiler = Compiler()
    seen.launches.clear()
    got = gradients(compiler(loss))
    assert len(compiler.graphs) == 2
    assert all(any(node.target is WRAPPER for node in graph.graph.nodes) for graph in compiler.graphs)
    assert {"relu_mask_kernel", "max_pool_kernel", "pool_push_kernel"} <= {one.name for one in seen.launches}
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_products_that_pytorch_takes_are_nodes_of_its_own(seen):
    x, weight = drawn("linear_relu_mask")
    compiler = Compiler()
    h, _ = compiler(xa.ops.linear_relu_mask)(x, weight)
    assert (compiler.count(torch.ops.aten.mm.default), compiler.count(WRAPPER)) == (1, 1)
    assert torch.equal(h, (x @ weight.T).relu())


# ---- what stays one node ----


def test_on_the_cpu_an_operator_is_one_node(emulated):
    compiler = Compiler()
    compiler(xa.ops.relu_mask)(*drawn("relu_mask"))
    assert (compiler.count("xattr"), compiler.count(WRAPPER)) == (1, 0)


def test_what_has_no_kernel_is_one_node(seen):
    compiler = Compiler()
    compiler(xa.ops.relu_mask)(torch.randn(9, 33).double())
    assert (compiler.count("xattr"), compiler.count(WRAPPER)) == (1, 0)


def test_with_dynamic_sizes_an_operator_is_one_node(seen):
    compiler = Compiler()
    compiled = compiler(xa.ops.relu_mask, dynamic=True)
    for rows in (5, 9):
        z = torch.randn(rows, 33)
        assert torch.equal(compiled(z)[0], z.relu())
    assert (compiler.count("xattr"), compiler.count(WRAPPER), len(compiler.graphs)) == (1, 0, 1)


def test_whole_perceptrons_are_one_node(seen):
    x, weights = torch.randn(9, 33), [torch.randn(20, 33), torch.randn(1, 20)]
    compiler = Compiler()
    compiler(lambda x: xa.ops.mlp_attribute(x, weights, [0.0], torch.ones(9, 1), [], [])[0])(x)
    assert (compiler.count("xattr"), compiler.count(WRAPPER)) == (1, 0)


def test_an_exported_program_keeps_the_operator(seen):
    class Model(torch.nn.Module):
        def forward(self, z):
            return xa.ops.relu_mask(z)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch itself does
        program = torch.export.export(Model(), (torch.randn(9, 33),)).run_decompositions()
    targets = [str(node.target) for node in program.graph.nodes]
    assert "xattr.relu_mask.default" in targets


def test_a_launcher_that_cannot_be_traced_leaves_one_node_and_says_so(seen, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("only tuple grids are supported")

    monkeypatch.setattr(torch.library, "wrap_triton", fail)
    z = torch.randn(9, 33)
    compiler = Compiler()
    with pytest.warns(UserWarning, match="does not see the kernels of xattr::relu_mask: RuntimeError: only tuple"):
        h, _ = compiler(xa.ops.relu_mask)(z)
    assert torch.equal(h, z.relu())
    assert (compiler.count("xattr"), compiler.count(WRAPPER)) == (1, 0)
    assert not launching._thread.traced


# ---- what a compiled graph is made of ----


def _visible():
    """(module, name) of every kernel that a graph may have."""
    for module in kernel_report.modules():
        for name, value in vars(module).items():
            own = isinstance(value, JITFunction) and value.fn.__module__ == module.__name__
            of_perceptrons = name.startswith("mlp_") or module.__name__.endswith("weight_gradients")
            if own and name.endswith("_kernel") and not of_perceptrons:
                yield module, name


LAUNCHED = {"product_kernel": "linear_relu_mask", "add_splits_kernel": "dual_weight_grad"}
LAUNCHED |= {"gini_ranks_kernel": "gini", "gini_gradient_kernel": "gini", "prior_sums_kernel": "input_times_gradient"}


@pytest.mark.parametrize(("module", "name"), [*_visible()], ids=lambda one: one if isinstance(one, str) else "")
def test_the_source_that_a_graph_takes_of_a_kernel_is_whole(module, name, emulated, monkeypatch, tmp_path):
    op = LAUNCHED.get(name, name.removesuffix("_kernel"))
    args = drawn(op) if name != "add_splits_kernel" else (torch.randn(1100, 5), torch.randn(1100, 7))
    want = getattr(kernels, op)(*args)
    assert name in {launch.name for launch in emulated.launches}
    header = "import triton\nimport triton.language as tl\n\n\n@triton.jit\n"
    (tmp_path / f"emitted_{name}.py").write_text(header + source_of(getattr(module, name)))
    monkeypatch.syspath_prepend(str(tmp_path))
    emitted = getattr(importlib.import_module(f"emitted_{name}"), name)
    monkeypatch.setattr(module, name, emitted)
    if hasattr(getattr(kernels, op), "__globals__") and name in getattr(kernels, op).__globals__:
        monkeypatch.setitem(getattr(kernels, op).__globals__, name, emitted)
    emulated.launches.clear()
    got = getattr(kernels, op)(*args)
    assert name in {launch.name for launch in emulated.launches}
    assert all(torch.equal(g, w) for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True))


@pytest.mark.parametrize("op", xa.ops.SCHEMAS)
def test_a_graph_on_disk_is_named_after_all_files_of_the_kernels(op, tmp_path, monkeypatch):
    (before,) = get_triton_kernels_for_op(f"xattr::{op}")
    assert source_of(before).startswith("# ")
    again = traced._Sources()
    assert source_of(again) == source_of(before)
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: spec)
    (tmp_path / "a.py").write_text("1")
    one = traced._Sources().src
    (tmp_path / "a.py").write_text("2")
    assert len({one, traced._Sources().src, again.src}) == 3
