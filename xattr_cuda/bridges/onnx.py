"""ONNX: a file with the output and the attribution of an X-DNN, checked in onnxruntime against PyTorch."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import extras
from ..sweep.arguments import leaves
from ..sweep.errors import UnsupportedLayerError
from ..sweep.inputs import Inputs, as_tuple
from ..sweep.program import bind
from ..sweep.target import Target
from .export import WithAttribution, with_attribution
from .plain_layers import plain


class ExportError(RuntimeError):
    """The network could not be written as ONNX, or the file computes something else than PyTorch."""


class Export(NamedTuple):
    """What `export_onnx` returns: the file, the names of its inputs, and its errors against PyTorch on the example.

    An error is the largest difference over the largest value.
    """

    path: Path
    inputs: tuple[str, ...]
    output_error: float
    attribution_error: float


def export_onnx(
    model: nn.Module,
    inputs: Inputs,
    path: str | Path,
    target: Target | str = None,
    *,
    tolerance: float = 1e-4,
    **options: Any,
) -> Export:
    """Write an X-DNN with its attribution as an ONNX file, run the file, and compare.

    The graph's outputs are "output" and "attribution" ("attribution_0", ... for several inputs), its inputs "input"
    ("input_0", ...) and, with a target by sample, "target". It is that of the evaluation mode. The batch is open, all
    other sizes are those of the example. onnxruntime has fp32 and fp16 on the CPU, and no convolution in float64.

    model: an X-DNN with one tensor as output. inputs: an example, [B, ...] or a tuple of them. target: as for
    `with_attribution`; a LongTensor [B] makes the target an input of the graph. tolerance: how far onnxruntime may be
    from PyTorch on the example, over the largest value of each output. Two engines that round differently may put an
    element that is zero but for rounding on different sides of an activation, so exact agreement is not to be had.
    options: further arguments of torch.onnx.export.

    Raises NotHomogeneousError or UnsupportedLayerError for a layer that has no closed form or no plain one, and
    ExportError where torch.onnx fails or the file's results differ.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        extras.load(library, extra="onnx")
    by_sample = isinstance(target, Tensor)
    examples = [torch.cat([t, t]) if len(t) == 1 else t for t in as_tuple(inputs)]  # of one, a graph would be for one
    arguments: list[Any] = [tuple(examples) if isinstance(inputs, tuple) else examples[0]]
    if isinstance(target, Tensor):
        arguments.append(torch.cat([target, target]) if len(target) == 1 else target)
    modes = [(m, m.training) for m in model.modules()]
    try:
        model.eval()
        module = with_attribution(model, None if by_sample else target, inputs=len(examples)).eval()
        with torch.no_grad():
            _refuse_foreign(model, examples)
            wanted = leaves(module(*arguments))
            names = _write(module, arguments, len(examples), Path(path), options)
    finally:
        for m, training in modes:
            m.training = training
    found = _run(Path(path), dict(zip(names, leaves(tuple(arguments)), strict=True)))
    output, *attributions = [_error(f, w) for f, w in zip(found, wanted, strict=True)]
    report = Export(Path(path), tuple(names), output, max(attributions))
    if not max(report.output_error, report.attribution_error) <= tolerance:  # of NaN, too
        raise ExportError(
            f"onnxruntime is {report.output_error:.3g} from PyTorch in the output and {report.attribution_error:.3g} "
            f"in the attribution, over the largest values; allowed is tolerance={tolerance:.3g}. The file is {path}"
        )
    return report


class _Seen(TorchDispatchMode):
    """Notes the names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def _refuse_foreign(model: nn.Module, xs: Sequence[Tensor]) -> None:
    """Raise for a layer whose maps call operators that ONNX has no form of: the package's own, and ATen's backward."""
    bound = bind(model, len(xs))
    values = list(xs)
    for i, instruction in enumerate(bound.program.instructions):
        bound.settle(i, [v.shape for v in values])
        layer = bound.layers[i]
        with _Seen() as seen:
            out, transpose = plain(layer, bound.params[i], *[values[v] for v in instruction.inputs])
            transpose(torch.ones_like(out))
        values.append(out)
        if foreign := sorted(n for n in seen.names if n.startswith("xattr::") or "backward" in n):
            raise UnsupportedLayerError(
                layer.name,
                layer.kind,
                f"its rule calls {', '.join(foreign)}, which ONNX has no form of",
                "Write its rule with other operators of PyTorch, or use another layer",
            )


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{k}" for k in range(count)]


def _write(
    module: WithAttribution, arguments: Sequence[Any], inputs: int, path: Path, options: dict[str, Any]
) -> list[str]:
    """Write the file; returns the names of the graph's inputs."""
    names = _names("input", inputs) + ["target"] * (len(arguments) > 1)
    others = leaves(tuple(arguments))[1:]
    axes = iter([{0: torch.export.Dim("batch")}, *({0: torch.export.Dim.AUTO} for _ in others)])
    shapes = [tuple(next(axes) for _ in a) if isinstance(a, tuple) else next(axes) for a in arguments]
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                tuple(arguments),
                dynamo=True,
                dynamic_shapes=tuple(shapes),
                input_names=names,
                output_names=["output", *_names("attribution", inputs)],
                **{"verbose": False, **options},
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"torch.onnx cannot write {type(module.model).__name__}: {_summary(error)}") from error
        assert program is not None
        program.save(path)
    return names


def _summary(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's words about libraries that are not used here, and about PyTorch itself."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".isinstance.treespec, LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _run(path: Path, arguments: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of a file in onnxruntime, on the CPU."""
    onnxruntime = extras.load("onnxruntime", extra="onnx")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {name: t.detach().cpu().numpy() for name, t in arguments.items()})
    except Exception as error:  # onnxruntime has a dozen, all derived from RuntimeError or Exception
        raise ExportError(f"onnxruntime cannot run {path}: {_summary(error)}") from error
    return [torch.from_numpy(array) for array in found]


def _error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest value."""
    if found.shape != wanted.shape:
        raise ExportError(f"onnxruntime returned {list(found.shape)}, PyTorch {list(wanted.shape)}")
    if not wanted.numel():
        return 0.0
    found, wanted = found.double(), wanted.double().cpu()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
