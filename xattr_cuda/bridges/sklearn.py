"""scikit-learn: X-MLPs with attribution priors as a classifier and a regressor, for people with a table."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor
from torch.nn import functional as F

from .. import priors
from ..models import xmlp
from ..sweep import attribute

Prior = Callable[[Tensor], Tensor]

# A prior's name, the prior, and the power of a row's weight by which its attribution is multiplied to weight the row.
PRIORS: dict[str, tuple[Prior, float]] = {"gini": (priors.gini, 1), "l1": (priors.l1, 1), "l2": (priors.l2, 0.5)}
FLOATS = (np.float64, np.float32)
ROWS = 1 << 16  # how many go through the network at a time, outside of training


class _XMLP(BaseEstimator, ABC):
    """What classifier and regressor share: the settings, the training and the attribution."""

    def __init__(
        self,
        hidden_layer_sizes: Any = (64, 32),
        *,
        prior: str | Prior | None = "gini",
        strength: float = 0.1,
        epochs: int = 100,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        standardize: bool = True,
        random_state: Any = None,
        device: Any = "cpu",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.prior = prior
        self.strength = strength
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    @abstractmethod
    def _outputs(self) -> int:
        """How many outputs the network has, C."""

    @abstractmethod
    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        """The loss of each row, [B], of the network's output [B, C] for y [B]."""

    @abstractmethod
    def _target(self, y: Tensor) -> Tensor | None:
        """The output of each row that is attributed, [B]; None is the only one."""

    def _check_settings(self) -> None:
        if not (self.prior is None or callable(self.prior) or self.prior in PRIORS):
            raise ValueError(f"`prior` is {self.prior!r}; wanted None, {', '.join(map(repr, PRIORS))} or a function")
        for name, least in (("epochs", 1), ("batch_size", 1)):
            if not isinstance(value := getattr(self, name), Integral) or value < least:
                raise ValueError(f"`{name}` is {value!r}; wanted an integer, {least} or more")
        if not 0 <= self.strength < np.inf:
            raise ValueError(f"`strength` is {self.strength}; wanted a finite number, 0 or more")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"`learning_rate` is {self.learning_rate}; wanted a finite number above 0")

    def _weights(self, sample_weight: Any, X: np.ndarray) -> np.ndarray:
        """The rows' weights [n], nonnegative and not all zero; ones for None."""
        weight = _check_sample_weight(sample_weight, X, dtype=X.dtype)
        if (weight < 0).any() or not weight.any():
            raise ValueError("`sample_weight` holds negative numbers or only zeros; wanted nonnegative row weights")
        used = weight[weight > 0]
        if callable(self.prior) and self.strength and (used != used[0]).any():
            raise ValueError(
                "`prior` is a function, which sees rows and not their weights, and `sample_weight` differs from row to "
                f"row; name one of {', '.join(map(repr, PRIORS))}, or leave the weights out"
            )
        return weight

    def _fit(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> Tensor:
        """Train on rows X [n, F] for y [n], integers or standardised numbers; return the network's rows, [n, F]."""
        self.scaler_ = StandardScaler().fit(X, sample_weight=weight) if self.standardize else None
        random = check_random_state(self.random_state)
        sizes = self.hidden_layer_sizes if isinstance(self.hidden_layer_sizes, Iterable) else [self.hidden_layer_sizes]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.randint(np.iinfo(np.int32).max))
            network = xmlp([X.shape[1], *sizes, self._outputs()], dtype=torch.from_numpy(X[:0]).dtype)
        self.network_ = network.to(self.device)
        x, rows = self._tensor(X), torch.tensor(weight / weight.mean(), device=self.device)
        self.loss_curve_ = self._train(x, torch.tensor(y, device=self.device), rows, random)
        if not all(p.isfinite().all() for p in self.network_.parameters()):
            raise ValueError("training diverged: the weights are not finite; lower `learning_rate` or `strength`")
        return x

    def _train(self, x: Tensor, y: Tensor, weight: Tensor, random: np.random.RandomState) -> list[float]:
        """Adam on shuffled batches; returns the mean loss, prior included, of every epoch."""
        optimizer = torch.optim.Adam(self.network_.parameters(), self.learning_rate, fused=True)
        curve = []
        for _ in range(self.epochs):
            order = torch.from_numpy(random.permutation(len(x))).to(x.device)
            total = torch.zeros((), dtype=x.dtype, device=x.device)
            for batch in order.split(self.batch_size):
                optimizer.zero_grad()
                loss = self._loss(x[batch], y[batch], weight[batch])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(batch)
            curve.append(float(total) / len(x))
        optimizer.zero_grad()
        return curve

    def _loss(self, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean loss of a batch, [], with the prior on its attribution."""
        if self.prior is None or not self.strength:
            return (weight * self._losses(self.network_(x), y)).mean()
        prior, power = (self.prior, 0) if callable(self.prior) else PRIORS[self.prior]
        output, attribution = attribute(self.network_, x, self._target(y))
        if power:
            attribution = weight.pow(power).unsqueeze(1) * attribution
        return (weight * self._losses(output, y)).mean() + self.strength * prior(attribution)

    def _keep_attributions(self, x: Tensor, target: Tensor | None, weight: np.ndarray) -> None:
        self.attributions_ = self._attribute(x, target)
        importance = np.average(np.abs(self.attributions_), axis=0, weights=weight)
        self.feature_importances_ = importance / (importance.sum() or 1)

    def _tensor(self, X: np.ndarray) -> Tensor:
        """Rows [n, F] as the network takes them."""
        rows = X if self.scaler_ is None else self.scaler_.transform(X)
        like = next(self.network_.parameters())
        return torch.tensor(rows, dtype=like.dtype, device=like.device)

    def _rows(self, X: Any) -> Tensor:
        """The caller's rows, checked."""
        check_is_fitted(self)
        return self._tensor(validate_data(self, X, reset=False, dtype=FLOATS))

    def _predict(self, x: Tensor) -> Tensor:
        """intercept_ + the network's output, [n, C]."""
        with torch.no_grad():
            return torch.cat([self.network_(part) for part in x.split(ROWS)]) + self._constant(x)

    def _constant(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.intercept_, dtype=x.dtype, device=x.device)

    def _attribute(self, x: Tensor, target: Tensor | None) -> np.ndarray:
        """Attributions [n, F] of the outputs in `target` [n]; None is the only one."""
        targets = [None] * len(x) if target is None else target.split(ROWS)
        with torch.no_grad():
            parts = [attribute(self.network_, *pair).attribution for pair in zip(x.split(ROWS), targets, strict=False)]
        return torch.cat(parts).cpu().numpy()


class XMLPClassifier(ClassifierMixin, _XMLP):
    """A perceptron without biases, trained with an attribution prior, that says of every row why it decided so.

    Columns are centred and scaled, an X-MLP follows, and a constant, `intercept_`, is added: the log odds of the
    classes in the training rows. The network has no constant of its own, so that what it adds for a row is explained
    without a remainder, by its X-Gradient: for the decision of one class

        decision_function(X) == intercept_ + attribute(X).sum(1)

    and the mean row, whose attribution is zero, gets the base rates. With `standardize=False` that is the row of zeros,
    and what a row adds is proportional to it: of 2 x twice that of x.

    hidden_layer_sizes: widths of the hidden layers. prior: "gini" (few columns should decide), "l1", "l2", None, or a
    function from attributions [B, F] of a batch, a tensor, to a scalar, as in `xattr_cuda.priors`; strength: what it is
    multiplied by before it is added to the mean cross-entropy. With two classes the attribution is that of the decision
    for the second, else that of the row's class. epochs, batch_size, learning_rate: passes over the rows, rows a step
    and step size of Adam. standardize: whether to centre columns at their training mean and divide them by their
    deviation. random_state: draws the initial weights and the order of the rows. device: where torch computes.

    Computes in the dtype of X, float64 or float32. After `fit`:
    classes_: [C]. intercept_: [C], [1] for two classes. attributions_: [n, F], of the training rows of positive weight;
    feature_importances_: [F], their mean magnitudes over their sum. network_: the X-MLP, a torch module. scaler_: the
    StandardScaler before it, or None. loss_curve_: the mean loss of every epoch, prior included.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "XMLPClassifier":
        """Train on rows X [n, F] and their classes y [n]; sample_weight: [n], nonnegative; 0 leaves a row out.

        A row of weight 2 counts as two rows, in the prior too; a prior that is a function takes no unequal weights.
        """
        X, y = validate_data(self, X, y, dtype=FLOATS)
        check_classification_targets(y)
        self._check_settings()
        weight = self._weights(sample_weight, X)
        X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"`y` holds one class, {self.classes_.tolist()[0]!r}; wanted two or more")
        shares = np.bincount(labels, weight) / weight.sum(dtype=np.float64)
        odds = np.log(shares)
        self.intercept_ = (odds[1:] - odds[:1] if len(odds) == 2 else odds).astype(X.dtype)
        x = self._fit(X, labels, weight)
        self._keep_attributions(x, self._target(torch.tensor(labels, device=x.device)), weight)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Log odds [n] of the second of two classes, or logits [n, C]."""
        output = self._predict(self._rows(X)).cpu().numpy()
        return output[:, 0] if output.shape[1] == 1 else output

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [n, C] of `classes_`."""
        output = self._predict(self._rows(X))
        logits = torch.cat([torch.zeros_like(output), output], 1) if output.shape[1] == 1 else output
        return logits.softmax(1).cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most likely class of every row, [n]."""
        output = self.decision_function(X)
        return self.classes_[(output > 0).astype(np.intp) if output.ndim == 1 else output.argmax(1)]

    def attribute(self, X: Any, target: Any = None) -> np.ndarray:
        """Attributions [n, F]: what each column of a row adds to the decision for a class.

        target: one of `classes_` or one for each row; None is the second of two classes, or each row's predicted class.
        """
        x, two = self._rows(X), len(self.classes_) == 2
        if target is None:
            return self._attribute(x, None if two else self._predict(x).argmax(1))
        labels = np.broadcast_to(np.asarray(target), len(x))
        if not (known := np.isin(labels, self.classes_)).all():
            wrong, classes = labels[~known].tolist()[0], self.classes_.tolist()
            raise ValueError(f"`target` holds {wrong!r}; wanted one of the classes {classes}")
        chosen = np.searchsorted(self.classes_, labels)
        if two:
            attribution = self._attribute(x, None)
            return np.where(chosen[:, np.newaxis] == 1, attribution, -attribution)
        return self._attribute(x, torch.tensor(chosen, device=x.device))

    def _outputs(self) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        logits = output + self._constant(output)
        if len(self.classes_) == 2:
            return F.binary_cross_entropy_with_logits(logits.squeeze(1), y.to(logits.dtype), reduction="none")
        return F.cross_entropy(logits, y, reduction="none")

    def _target(self, y: Tensor) -> Tensor | None:
        return None if len(self.classes_) == 2 else y


class XMLPRegressor(RegressorMixin, _XMLP):
    """A perceptron without biases, trained with an attribution prior, that says what the number of a row is made of.

    As XMLPClassifier, with the mean of the training targets as `intercept_`, a float, and the mean squared error of the
    standardised targets as the loss; the prior sees the attribution in their scale. Attributions are in the units of y:

        predict(X) == intercept_ + attribute(X).sum(1)

    The settings, and what `fit` leaves, are those of XMLPClassifier; there is no `classes_`.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "XMLPRegressor":
        """Train on rows X [n, F] and their numbers y [n]; sample_weight: as for XMLPClassifier."""
        X, y = validate_data(self, X, y, dtype=FLOATS, y_numeric=True)
        self._check_settings()
        weight = self._weights(sample_weight, X)
        X, y, weight = X[weight > 0], y[weight > 0].astype(np.float64), weight[weight > 0]
        self.intercept_ = float(np.average(y, weights=weight))
        deviation = float(np.sqrt(np.average(np.square(y - self.intercept_), weights=weight))) or 1.0
        x = self._fit(X, ((y - self.intercept_) / deviation).astype(X.dtype), weight)
        *_, last = self.network_.parameters()
        with torch.no_grad():
            last.mul_(deviation)  # the network is homogeneous in a weight, too: it now answers in the units of y
        self._keep_attributions(x, None, weight)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The number of every row, [n]."""
        return self._predict(self._rows(X))[:, 0].cpu().numpy()

    def attribute(self, X: Any) -> np.ndarray:
        """Attributions [n, F]: what each column of a row adds to the prediction, in the units of y."""
        return self._attribute(self._rows(X), None)

    def _outputs(self) -> int:
        return 1

    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(output.squeeze(1), y, reduction="none")

    def _target(self, y: Tensor) -> Tensor | None:
        return None
