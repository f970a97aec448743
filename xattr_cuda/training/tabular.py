"""Tables with a binary label: loading, encoding, splitting, imputing and scaling."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import extras
from .errors import UserError

MIN_ROWS = 30
MAX_CATEGORIES = 50  # more distinct texts than this are names or notes, not a category

NHEFS_ROWS = 100  # of training and of validation: the paper's, for its table of the same survey
# The label, what was measured after the baseline of 1971 (among it whether smoking was given up), identifiers, and
# `older`, which is age over 50.
NHEFS_LEFT_OUT = (
    "death", "yrdth", "modth", "dadth", "qsmk", "wt82", "wt82_71", "smkintensity82_71", "sbp", "dbp", "price82",
    "tax82", "hightax82", "price71_82", "tax71_82", "censored", "seqn", "id", "older",
)  # fmt: skip
# Codes without an order, and answers in which one code stands for a missing value.
NHEFS_CATEGORIES = (
    "sex", "race", "education", "marital", "birthplace", "active", "exercise", "alcoholpy", "alcoholfreq",
    "alcoholtype", "hbp", "diabetes", "pica", "hbpmed", "boweltrouble", "birthcontrol",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table in numbers: features float64 [N, F], NaN where missing, and labels int64 [N] of zeros and ones."""

    name: str
    features: np.ndarray
    labels: np.ndarray
    columns: tuple[str, ...]
    label: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Split:
    """One random split, imputed and scaled: inputs float32 [n, F] and labels float32 [n], training rows first."""

    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_nhefs() -> Table:
    """NHEFS, the follow-up of NHANES I: 1,629 smokers, their baseline of 1971, label: dead by 1992.

    From Hernán and Robins, *Causal Inference: What If*, as the package causaldata carries it.
    Raises MissingPackageError where causaldata or pandas is missing.
    """
    extras.load("pandas")
    frame = extras.load("causaldata").nhefs.load_pandas().data
    labels = frame["death"].to_numpy(np.int64)
    frame = frame.drop(columns=list(NHEFS_LEFT_OUT))
    features, columns = _encode(frame, categories=NHEFS_CATEGORIES)
    return Table("nhefs", features, labels, columns, "death", "1 (dead by 1992)", "0 (alive)")


def load_csv(path: Path, label: str, drop: Sequence[str] = (), positive: str | None = None) -> Table:
    """A comma-separated file with a header, its binary label in column `label`.

    drop: columns to leave out. positive: the label value to predict; by default the greater number, or of two texts
    the later in the alphabet. Numbers and booleans are used as they are, texts of at most 50 values one-hot.
    Raises UserError, with the column's name, for whatever cannot be used.
    """
    frame = _read(path)
    if label not in frame.columns:
        raise UserError(f"{path} has no column {label!r}; it has {_some(frame.columns)}")
    missing = [name for name in drop if name not in frame.columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r} to drop; it has {_some(frame.columns)}")
    if len(frame) < MIN_ROWS:
        raise UserError(f"{path} has {len(frame)} rows; wanted at least {MIN_ROWS} to train, validate and test")
    labels, negative, chosen = _binary(frame[label], label, positive)
    frame = frame.drop(columns=[label, *(name for name in drop if name != label)])
    if frame.shape[1] == 0:
        raise UserError(f"{path} has no column besides the label to learn from")
    features, columns = _encode(frame, categories=[])
    return Table(path.name, features, labels, columns, label, chosen, negative)


def _read(path: Path) -> Any:
    pandas = extras.load("pandas")
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; wanted a CSV file")
    try:
        frame = pandas.read_csv(path)
    except pandas.errors.EmptyDataError:
        raise UserError(f"{path} is empty; wanted a CSV file with a header line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; wanted a CSV file") from None
    except (pandas.errors.ParserError, ValueError) as error:
        raise UserError(f"{path} does not read as CSV: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return frame


def _some(names: Sequence[object], at_most: int = 8) -> str:
    shown = ", ".join(repr(str(name)) for name in list(names)[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"


def _binary(column: Any, name: str, positive: str | None) -> tuple[np.ndarray, str, str]:
    """(labels of zeros and ones, the negative value, the positive value)."""
    if missing := int(column.isna().sum()):
        raise UserError(f"label column {name!r} has {missing} missing values; remove those rows")
    values = sorted(column.unique().tolist())
    if len(values) != 2:
        given = f"{len(values)} distinct values ({_some(values, 4)})"
        raise UserError(f"label column {name!r} has {given}; wanted exactly two: the label must be binary")
    texts = [str(value) for value in values]
    chosen = texts[1] if positive is None else positive
    if chosen not in texts:
        raise UserError(f"label column {name!r} has no value {positive!r} to take as positive; it has {_some(texts)}")
    labels = (column == values[texts.index(chosen)]).to_numpy(np.int64)
    return labels, texts[1 - texts.index(chosen)], chosen


def _encode(frame: Any, categories: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Features float64 [N, F] and their names: texts and `categories` one-hot, all zero where the value is missing."""
    pandas = extras.load("pandas")
    frame = frame.dropna(axis="columns", how="all")
    kinds = pandas.api.types
    texts = [c for c in frame.columns if not kinds.is_numeric_dtype(frame[c]) and not kinds.is_bool_dtype(frame[c])]
    for name in texts:
        if (distinct := frame[name].nunique()) > MAX_CATEGORIES:
            raise UserError(
                f"column {name!r} is text with {distinct} distinct values, more than {MAX_CATEGORIES}; "
                "recode it, or leave it out with --drop"
            )
    frame = pandas.get_dummies(frame, columns=sorted({*texts, *categories}, key=list(frame.columns).index))
    features = frame.to_numpy(np.float64)
    if features.shape[1] == 0:
        raise UserError("every column besides the label is empty; there is nothing to learn from")
    infinite = np.isinf(features).any(axis=0)
    if infinite.any():
        raise UserError(f"column {frame.columns[infinite.argmax()]!r} has infinite values; replace or remove them")
    return features, tuple(map(str, frame.columns))


def default_sizes(table: Table) -> tuple[int, int]:
    """Rows of training and of validation when none are asked for: 100 and 100 for NHEFS, else 60 and 20 %."""
    if table.name == "nhefs":
        return NHEFS_ROWS, NHEFS_ROWS
    rows = len(table.labels)
    return round(0.6 * rows), round(0.2 * rows)


def split(table: Table, seed: int, train_rows: int, validation_rows: int) -> Split:
    """A random split with the labels in proportion; means and scales are fitted on its training rows alone.

    A column that is missing in every training row is zero, the mean of what was scaled. Raises UserError where a part
    would not have both labels.
    """
    selection, impute = extras.load("sklearn.model_selection"), extras.load("sklearn.impute")
    preprocessing, pipeline = extras.load("sklearn.preprocessing"), extras.load("sklearn.pipeline")
    rows = len(table.labels)
    test_rows = rows - train_rows - validation_rows
    if min(train_rows, validation_rows, test_rows) < 2:
        raise UserError(
            f"{train_rows} training and {validation_rows} validation rows of {rows} leave {test_rows} to test on; "
            "wanted at least 2 in each part"
        )
    order = np.arange(rows)
    try:
        train, rest = selection.train_test_split(order, train_size=train_rows, random_state=seed, stratify=table.labels)
        validation, test = selection.train_test_split(
            rest, train_size=validation_rows, random_state=seed, stratify=table.labels[rest]
        )
    except ValueError:
        raise _one_label(table) from None
    if any(len(np.unique(table.labels[part])) < 2 for part in (train, validation, test)):
        raise _one_label(table)
    scale = pipeline.make_pipeline(
        impute.SimpleImputer(strategy="mean", keep_empty_features=True), preprocessing.StandardScaler()
    ).fit(table.features[train])

    def part(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs = scale.transform(table.features[chosen])
        return torch.tensor(inputs, dtype=torch.float32), torch.tensor(table.labels[chosen], dtype=torch.float32)

    return Split(*part(train), *part(validation), *part(test))


def _one_label(table: Table) -> UserError:
    count = min(int(table.labels.sum()), int((1 - table.labels).sum()))
    return UserError(
        f"label column {table.label!r} has its rarer value in {count} of {len(table.labels)} rows, too few for every "
        "part of the split to have both; give more rows or other part sizes"
    )
