"""Decoy digits: handwritten digits with a patch that betrays the label in training and misleads in testing.

After the decoy MNIST of Ross, Hughes and Doshi-Velez 2017, on the 1,797 real digits that scikit-learn carries.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import extras

SIDE, MARGIN, PATCH = 12, 2, 2  # pixels: of an image, around the 8x8 digit, of a decoy
CLASSES = 10
TRAIN_IMAGES = 1197  # two thirds of 1,797; the rest is the test set


@dataclass(frozen=True)
class DecoyDigits:
    """Images float32 [N, 12, 12] in [0, 1], labels int64 [N], and where decoys can be: bool [12, 12]."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    corners: Tensor


def brightness(labels: np.ndarray) -> np.ndarray:
    """Brightness of the decoy that stands for a label: 1 for 0 down to 0.1 for 9. labels: integers [N]."""
    return 1 - labels / CLASSES


def corner_mask() -> Tensor:
    """The four corners in which a decoy can be, bool [12, 12]; no pixel of a digit is among them."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for row, column in _corners():
        mask[row : row + PATCH, column : column + PATCH] = True
    return mask


def _corners() -> list[tuple[int, int]]:
    far = SIDE - PATCH
    return [(0, 0), (0, far), (far, 0), (far, far)]


def load_decoy_digits(seed: int = 0) -> DecoyDigits:
    """The data set of one seed, which draws the split, the corner of every decoy and the test set's brightness.

    In training a decoy's brightness is that of its image's label, in testing that of a random label.
    Raises MissingPackageError where scikit-learn is missing.
    """
    digits, labels = extras.load("sklearn.datasets").load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    digits, labels = digits[order].reshape(-1, 8, 8) / 16, labels[order]
    shown = labels.copy()
    shown[TRAIN_IMAGES:] = rng.integers(0, CLASSES, len(labels) - TRAIN_IMAGES)
    images = np.zeros((len(labels), SIDE, SIDE), dtype=np.float32)
    images[:, MARGIN:-MARGIN, MARGIN:-MARGIN] = digits
    corners = _corners()
    for image, which, value in zip(images, rng.integers(0, len(corners), len(labels)), brightness(shown), strict=True):
        row, column = corners[which]
        image[row : row + PATCH, column : column + PATCH] = value
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    return DecoyDigits(x[:TRAIN_IMAGES], y[:TRAIN_IMAGES], x[TRAIN_IMAGES:], y[TRAIN_IMAGES:], corner_mask())
