"""The shift of each layer's representation of the same inputs."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from balora.audit.metrics import Metric, measured
from balora.audit.models import Audited, Model
from balora.evaluation.metric import Units, ratio_of_sums
from balora.evaluation.shift import hidden_outputs
from balora.losses.bias_path import mean_of_tokens
from balora.utils.batches import token_batches

FINAL, LAYERS = "representation_shift", "representation_shift_by_layer"


@torch.no_grad()
def measure_layers(
    audited: Audited, rows: Sequence[dict[str, list[int]]], *, on: str, batch_size: int, seed: int = 0
) -> list[Metric]:
    """Return `representation_shift` of the last hidden states, and of each layer.

    ‖H' − H‖_F / ‖H‖_F as in `balora.evaluation.shift`, with H (N × d) the mean over an input's tokens of the hidden
    states after a layer; layer 0 is the embeddings.

    Args:
        audited: Two models.
        rows: N inputs as a tokenizer gives them, `input_ids` at least.
        on: Name of the inputs.
        batch_size: Inputs at a time.
        seed: Seed of the bootstrap.
    """
    moved, lengths = [], []
    lengths_of_rows = [len(row["input_ids"]) for row in rows]
    for part in token_batches(lengths_of_rows, batch_size):
        inputs = audited.tokenizer.pad([rows[i] for i in part], padding_side="right", return_tensors="pt")
        inputs = {name: value.to(audited.tuned.device) for name, value in inputs.items()}

        def represent(model: Model, inputs: dict[str, Tensor] = inputs) -> Tensor:
            layers = hidden_outputs(model, model, **inputs).hidden_states
            return torch.stack([mean_of_tokens(layer.double(), inputs["attention_mask"]) for layer in layers])

        states = audited.answers(represent)  # (L + 1, B, d) each
        moved.append((states[1] - states[0]).square().sum(-1).cpu().numpy())
        lengths.append(states[0].square().sum(-1).cpu().numpy())
    changes, norms = np.concatenate(moved, 1), np.concatenate(lengths, 1)  # (L + 1, N)

    def figure(name: str, layer: int, on: str) -> Metric:
        units = Units(np.stack([changes[layer], norms[layer]], 1), lambda sums: np.sqrt(ratio_of_sums(sums)))
        return measured(name, units, on=on, unit="texts", seed=seed)

    return [figure(FINAL, -1, on), *(figure(LAYERS, layer, f"layer {layer}") for layer in range(len(changes)))]
