"""Representation shift: how far fine-tuning moved the final representations of the same inputs, and linear CKA.

`representation_shift` is a distance between the vectors themselves. Linear CKA compares their relative positions, so
it ignores a rotation or rescaling of the whole space, which a following layer could undo.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.fused import head_aside, owner_of
from balora.losses.bias_path import mean_of_tokens
from balora.utils.batches import inputs_and_mask
from balora.utils.modules import evaluation_mode


def representation_shift(before: np.ndarray, after: np.ndarray) -> float:
    """Return ‖H' − H‖_F / ‖H‖_F: the root mean square of the shift over that of the representation.

    Args:
        before: H `(N, d)`, of the pretrained model.
        after: H' `(N, d)`, of the adapted model on the same inputs.

    Returns:
        0 is no shift; there is no upper bound: √2 if H' is as long as H and orthogonal to it, 1 if H' is 0. NaN if H
        is 0.
    """
    before, after = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    length = np.linalg.norm(before)
    return float(np.linalg.norm(after - before) / length) if length else np.nan


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return centred kernel alignment with linear kernels: ‖YᵀX‖²_F / (‖XᵀX‖_F·‖YᵀY‖_F), columns centred.

    Kornblith et al. (2019), "Similarity of neural network representations revisited", equations 3 and 4.

    It equals ⟨XXᵀ, YYᵀ⟩ / (‖XXᵀ‖_F·‖YYᵀ‖_F), from N × N matrices; the cheaper form is used. With few examples it is
    large for any representations: N should be several times d.

    Args:
        x: `(N, d)`.
        y: `(N, e)`, of the same inputs.

    Returns:
        From 0 to 1; 1 if the two are equal up to rotation, a factor and an offset. NaN if either is the same for all
        inputs.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if not np.ptp(x, axis=0).any() or not np.ptp(y, axis=0).any():
        return np.nan
    x, y = x - x.mean(0), y - y.mean(0)
    n, d, e = len(x), x.shape[1], y.shape[1]
    if n * (d + e) < d * d + e * e + d * e:
        k, m = x @ x.T, y @ y.T  # (N, N)
        return float((k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m)))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / norms)


@torch.no_grad()
def measure_representation_shift(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[dict[str, Tensor]],
    teacher: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """Measure shift and CKA between the teacher's and the model's final representations.

    An input's representation is the mean of its last hidden states over the tokens that are not padding; in a
    sequence-to-sequence model, of the decoder's over the labelled tokens. For the vector that a classifier decides by,
    give `final_representation`'s features to `representation_shift` and `linear_cka`.

    Args:
        model: The adapted model; its training mode is unchanged.
        batches: Model inputs as tensors, as in `measure_drift`.
        teacher: The pretrained model's forward; default: the `BALoraModel`'s own teacher.

    Returns:
        `representation_shift` and `linear_cka`.
    """
    teacher = teacher or model.teacher_forward
    owner = owner_of(teacher)
    before, after = [], []
    for batch in batches:
        inputs, mask = inputs_and_mask(model, batch)
        with evaluation_mode(model):
            student = hidden_outputs(model, model, **inputs)
            taught = hidden_outputs(teacher, owner, **inputs)
        before.append(mean_of_tokens(_last_hidden_states(taught).double(), mask).cpu())
        after.append(mean_of_tokens(_last_hidden_states(student).double(), mask).cpu())
    old, new = torch.cat(before).numpy(), torch.cat(after).numpy()  # (N, d)
    return {"representation_shift": representation_shift(old, new), "linear_cka": linear_cka(old, new)}


def hidden_outputs(forward: Callable[..., Any], model: nn.Module | None, **inputs: Any) -> Any:
    """Run a forward with `output_hidden_states`, without the LM head.

    Args:
        forward: Called with the inputs.
        model: The model whose modules it calls, with or without an adapter; `None` if unknown.
        inputs: A model's inputs.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with ExitStack() as aside:
        if base is not None and base.get_output_embeddings() is not None:
            aside.enter_context(head_aside(base))
        return forward(**inputs, output_hidden_states=True)


def _last_hidden_states(output: Any) -> Tensor:
    """Return the last hidden states `(B, S, d)`, of the decoder if there is one."""
    states = output.get("decoder_hidden_states") or output["hidden_states"]
    return states[-1]
