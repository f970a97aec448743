"""Lightning: a callback that adds an attribution prior to the training of any LightningModule."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import extras
from ..sweep import Attribution, attribute
from ..sweep.target import Target

Strength = float | Callable[[int], float]


def _library() -> Any:
    """Lightning, under the name that the program has imported already, or else `lightning`."""
    if "lightning.pytorch" not in sys.modules and "pytorch_lightning" in sys.modules:
        return sys.modules["pytorch_lightning"]
    return extras.load("lightning.pytorch", extra="lightning")


class AttributionPrior(_library().Callback):  # type: ignore[misc]
    """Adds strength * prior(attribution) to the loss that `training_step` returns, and logs the prior.

    During `training_step` a call of the network runs the sweeps of `xattr_cuda.attribute`: the step gets the output as
    before, the callback the attribution, and the loss that it returns, a tensor or a dictionary with "loss", grows by
    the prior. The network runs once, so a step costs what `attribute` and its backward pass cost; validation, testing
    and prediction are untouched. Precision, accumulation of gradients and DDP are Lightning's, as without the callback.
    The attribution of the loss, one chain for many classes, needs the criterion: call `xattr_cuda.attribute_loss` in
    `training_step` for that.

    prior: from an attribution [B, ...] to a scalar. strength: its factor, or a function from `trainer.global_step` to
    it. network: the name of the X-DNN in the LightningModule ("net", "backbone.body"); "": the LightningModule itself
    is one, by its `forward`. target: what is attributed, a function from the batch to a target of `attribute`
    (`lambda batch: batch[1]`: the labels), or a target; None where there is one output. name: under which the prior is
    logged, before it is multiplied.

    Where `training_step` calls the network more than once, the prior is the mean over the calls; calls under
    torch.no_grad() are none. Under DDP every process takes the prior of its rows and the gradients are averaged: for a
    prior that is a mean over rows (l1, l2, right_reasons) this is the prior of the global batch; others, such as gini,
    take `group=`.

    Raises NotHomogeneousError for a layer that has no closed form; ValueError at the start of `fit` for a network that
    is not there, for manual optimisation and for a compiled LightningModule; RuntimeError where a step did not call the
    network.
    """

    def __init__(
        self,
        prior: Callable[[Tensor], Tensor],
        strength: Strength,
        *,
        network: str = "",
        target: Target | Callable[[Any], Target] = None,
        name: str = "prior",
    ) -> None:
        super().__init__()
        self.prior, self.strength, self.network, self.target, self.name = prior, strength, network, target, name

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wrap `training_step` until `teardown`."""
        if stage != "fit":
            return
        plain_step = pl_module.training_step
        networks = getattr(plain_step, "networks", ())  # where another callback of this type has been here before
        self._check(pl_module, networks)

        @functools.wraps(inspect.unwrap(plain_step))
        def training_step(*args: Any, **kwargs: Any) -> Any:
            batch = args[0] if args else next(iter(kwargs.values()))
            with self._swept(pl_module, batch) as attributions:
                returned = plain_step(*args, **kwargs)
            return self._with_prior(trainer, pl_module, returned, attributions)

        own = plain_step.own if networks else pl_module.__dict__.get("training_step")
        vars(training_step).update(networks=(*networks, self.network), own=own)
        pl_module.training_step = training_step

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own `training_step` back."""
        step = pl_module.__dict__.get("training_step")
        if hasattr(step, "networks"):
            _set(pl_module, "training_step", step.own)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As `teardown`, which Lightning leaves out after an error."""
        self.teardown(trainer, pl_module, "fit")

    def _check(self, pl_module: Any, networks: tuple[str, ...]) -> None:
        kind = type(pl_module).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{kind} optimises by hand, so its loss cannot be added to; call xa.attribute in its training_step"
            )
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise ValueError(f"{kind} is compiled as it is; call xa.attribute in its training_step")
        if self.network in networks:
            raise ValueError(f"two AttributionPrior have the network {self.network!r}; add their priors in a function")
        try:
            pl_module.get_submodule(self.network)
        except AttributeError:
            known = ", ".join(repr(n) for n, _ in pl_module.named_children())
            raise ValueError(f"{kind} has no network {self.network!r}; it has {known}") from None

    @contextmanager
    def _swept(self, pl_module: Any, batch: Any) -> Iterator[list[Tensor]]:
        """Calls of the network are sweeps, whose attributions are in the list."""
        network: nn.Module = pl_module.get_submodule(self.network)
        target = self.target(batch) if callable(self.target) else self.target
        found: list[Tensor] = []
        own = network.__dict__.get("forward")  # Lightning puts one there for a step of DDP

        def forward(*inputs: Tensor, **kwargs: Any) -> Any:
            _set(network, "forward", own)
            try:
                if not torch.is_grad_enabled():
                    return network.forward(*inputs, **kwargs)
                if len(inputs) != 1 or kwargs:
                    raise ValueError(
                        f"the network is called with {len(inputs)} tensors and {len(kwargs)} named arguments; "
                        "AttributionPrior attributes one tensor: call xa.attribute in training_step"
                    )
                result: Attribution = attribute(network, inputs[0], target)
            finally:
                _set(network, "forward", forward)
            found.append(result.attribution)
            return result.output

        _set(network, "forward", forward)
        try:
            yield found
        finally:
            _set(network, "forward", own)

    def _with_prior(self, trainer: Any, pl_module: Any, returned: Any, attributions: list[Tensor]) -> Any:
        """What `training_step` returned, its loss with the prior."""
        if returned is None:  # the step is skipped
            return None
        if not attributions:
            name = self.network or type(pl_module).__name__
            raise RuntimeError(f"training_step did not call the network {name!r}; name the one that it calls")
        value = sum((self.prior(a) for a in attributions), start=attributions[0].new_zeros(())) / len(attributions)
        strength = self.strength(trainer.global_step) if callable(self.strength) else self.strength
        pl_module.log(self.name, value.detach(), batch_size=len(attributions[0]))
        if isinstance(returned, dict):
            return {**returned, "loss": returned["loss"] + strength * value}
        return returned + strength * value


def _set(module: nn.Module, name: str, value: Any) -> None:
    """Give the module an attribute of its own, or with None that of its class."""
    if value is None:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = value
