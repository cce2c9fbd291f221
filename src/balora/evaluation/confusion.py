"""Which classes are taken for which."""

import numpy as np
from sklearn.metrics import confusion_matrix


def confusion(logits: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts `(classes, classes)` of examples by true class (rows) and predicted class (columns).

    Args:
        logits: `(N, D)`.
        labels: `(N,)`.
        classes: Number of classes, so that those that no example shows have their row and column too.
    """
    return confusion_matrix(labels, logits.argmax(-1), labels=np.arange(classes))
