"""scikit-learn: a classifier for a table that decides by few columns and says which, in a pipeline and a grid search.

    python examples/sklearn_table.py

The table is Wisconsin's breast cancer data, 569 tumours by 30 measurements. Needs the `sklearn` extra.
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split

import xattr_cuda as xa


def main() -> None:
    torch.set_num_threads(1)  # two would spend their time waiting for each other on networks as small as these
    table = load_breast_cancer()
    train_x, test_x, train_y, test_y = train_test_split(table.data, table.target, stratify=table.target, random_state=0)

    for prior in (None, "gini"):
        model = xa.bridges.XMLPClassifier(prior=prior, strength=0.3, random_state=0).fit(train_x, train_y)
        shares = np.sort(model.feature_importances_)[::-1]
        columns = int((shares.cumsum() < 0.9).sum()) + 1
        print(
            f"prior {prior}: accuracy {model.score(test_x, test_y):.3f}, {columns} columns hold 90 % of the attribution"
        )

    search = GridSearchCV(xa.bridges.XMLPClassifier(epochs=30, random_state=0), {"strength": [0.1, 0.3]}, cv=3)
    search.fit(train_x, train_y)
    print(f"strength by cross-validation: {search.best_params_['strength']}")

    row = test_x[:1]
    parts = model.attribute(row)[0]
    print(f"one tumour: log odds of {table.target_names[1]} {model.decision_function(row)[0]:+.2f}, made of")
    print(f"  {model.intercept_[0]:+.2f} base rate")
    order = np.argsort(-np.abs(parts))
    for column in order[:3]:
        print(f"  {parts[column]:+.2f} {table.feature_names[column]}")
    print(f"  {parts[order[3:]].sum():+.2f} the other {len(order) - 3} columns")


if __name__ == "__main__":
    main()
