"""Rows of a batch: those whose attribution is wanted, and the others."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .rules.rows import memory_format_of

RowsLike = Tensor | slice | float
"""Row numbers [R], a mask [B], a slice, or a fraction of the batch to be drawn."""


def sample_rows(batch: int, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of a share of a batch's rows, drawn without replacement, each as likely as another: int64 [R], ascending.

    batch: how many rows there are. fraction: over 0, up to 1; R is fraction * batch, rounded, and at least 1 where
    there is a row at all. generator: PyTorch's own of its device if None, whose CPU generator None stands for. The
    result can be handed to `xa.attribute(..., rows=...)`, and tells which rows of a mask or of labels belong to the
    attribution. A mean over these rows is an unbiased estimate of the mean over the batch.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
        raise TypeError(f"`fraction` is a {type(fraction).__name__}; wanted a number over 0, up to 1")
    return _drawn(batch, fraction, generator)[0]


def _drawn(batch: int, fraction: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Numbers of the rows that were drawn and of the others, ascending."""
    if not 0 < fraction <= 1:
        raise ValueError(f"a fraction of rows is {fraction}; wanted a number over 0, up to 1")
    count = min(batch, max(1, round(fraction * batch)))
    device = torch.device("cpu") if generator is None else generator.device
    order = torch.randperm(batch, generator=generator, device=device)
    return order[:count].sort().values, order[count:].sort().values


class Numbers(NamedTuple):
    """Rows by their numbers."""

    own: Tensor  # [R]
    others: Tensor  # [B - R]
    places: Tensor  # where each row of the batch is found in `own` and then `others`, [B]


class Rows(NamedTuple):
    """Some rows of a batch: the stretch start .. stop, or those of `numbers` in their order."""

    batch: int
    start: int
    stop: int
    numbers: Numbers | None = None

    def take(self, t: Tensor) -> Tensor:
        """These rows of t [B, ...], differentiable."""
        if self.numbers is None:
            return t.narrow(0, self.start, self.stop - self.start)
        return _selected(t, self.numbers.own)

    def leave(self, t: Tensor) -> Tensor:
        """The others, in the order of the batch."""
        if self.numbers is not None:
            return _selected(t, self.numbers.others)
        if self.start == 0:
            return t[self.stop :]
        return t[: self.start] if self.stop == self.batch else torch.cat([t[: self.start], t[self.stop :]])

    def join(self, own: Tensor, others: Tensor) -> Tensor:
        """The batch again, from what was made of what `take` and `leave` return."""
        if self.numbers is not None:
            return torch.cat([own, others]).index_select(0, self.numbers.places.to(own.device))
        return torch.cat([others[: self.start], own, others[self.start :]])

    @property
    def chosen(self) -> int:
        """How many these are."""
        return self.stop - self.start if self.numbers is None else self.numbers.own.shape[0]

    @property
    def all_in_order(self) -> bool:
        """Whether these are all rows as they are."""
        return self.numbers is None and self.stop - self.start == self.batch


def _selected(t: Tensor, rows: Tensor) -> Tensor:
    return t.index_select(0, rows.to(t.device)).contiguous(memory_format=memory_format_of(t))


def _numbered(batch: int, own: Tensor, others: Tensor, device: torch.device) -> Rows:
    own, others = own.to(device, non_blocking=True), others.to(device, non_blocking=True)
    order = torch.cat([own, others])
    places = torch.empty_like(order).scatter_(0, order, torch.arange(batch, device=device))
    return Rows(batch, 0, 0, Numbers(own, others, places))


def rows_of(rows: RowsLike, xs: Sequence[Tensor], generator: torch.Generator | None) -> Rows:
    """The rows of a batch that an argument names. Raises TypeError, ValueError or IndexError with what is wanted."""
    batch = xs[0].shape[0]
    for i, x in enumerate(xs):
        if x.shape[0] != batch:
            raise ValueError(f"`inputs[{i}]` has {x.shape[0]} rows and `inputs[0]` {batch}; `rows` wants one batch")
    if generator is not None and not isinstance(rows, float):
        raise ValueError(
            f"`generator` draws a fraction of the rows, but `rows` is a {type(rows).__name__}; leave it out"
        )
    if isinstance(rows, float):
        if generator is not None and torch.compiler.is_compiling():
            raise ValueError("torch.compile draws from no generator; give `rows=xa.sample_rows(...)`, drawn outside")
        own, others = _drawn(batch, rows, generator)
        return _numbered(batch, own, others, xs[0].device) if len(others) else Rows(batch, 0, batch)
    if isinstance(rows, slice):
        start, stop, step = rows.indices(batch)
        if step == 1:
            return Rows(batch, start, max(start, stop))
        rows = torch.tensor(range(start, stop, step), dtype=torch.int64)
    if not isinstance(rows, Tensor):
        raise TypeError(f"`rows` is a {type(rows).__name__}; wanted row numbers (LongTensor), a slice or a fraction")
    own = _numbers(rows, batch)
    if own.shape[0] > batch:
        raise ValueError(f"`rows` has {own.shape[0]} numbers for a batch of {batch}; wanted each row once at most")
    own, others = _parted(own, batch)
    return _numbered(batch, own, others, xs[0].device)


def _numbers(rows: Tensor, batch: int) -> Tensor:
    """Row numbers of a tensor: int64 [R]."""
    if rows.dim() != 1:
        raise ValueError(f"`rows` has shape {list(rows.shape)}; wanted row numbers [R], or a mask [{batch}]")
    if rows.dtype == torch.bool:
        if torch.compiler.is_compiling():
            raise ValueError("within torch.compile the number of rows must be known; give row numbers, not a mask")
        if rows.shape[0] != batch:
            raise ValueError(f"`rows` is a mask of {rows.shape[0]} for a batch of {batch}; wanted one entry a row")
        return rows.nonzero().squeeze(1)
    if rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"`rows` has dtype {rows.dtype}; wanted integers, the numbers of rows")
    return rows.to(torch.int64)


@torch.library.custom_op("xattr_rows::parted", mutates_args=())
def _parted(own: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """These rows' numbers, checked, and those of the others, ascending. A compiled graph calls it as it is.

    Reading the values would stall a GPU, which checks them itself when it comes to them.
    """
    deferred = own.device.type != "cpu"
    _assure(((own >= 0) & (own < batch)).all(), deferred, IndexError, f"is out of range; wanted 0 to {batch - 1}")
    chosen = torch.zeros(batch, dtype=torch.bool, device=own.device).index_fill(0, own, True)
    _assure(chosen.sum() == own.shape[0], deferred, ValueError, "is there twice; wanted each row once at most")
    # Sorting keeps the order of equals, and its result has a known size: first the rows that are not chosen.
    return own.clone(), torch.argsort(chosen.to(torch.uint8), stable=True)[: batch - own.shape[0]].clone()


@_parted.register_fake
def _(own: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(own), own.new_empty(batch - own.shape[0])


def _assure(condition: Tensor, deferred: bool, error: type[Exception], message: str) -> None:
    message = f"`rows` holds a number that {message}"
    if deferred:
        torch._assert_async(condition, message)  # type: ignore[no-untyped-call]
    elif not condition:
        raise error(message)
