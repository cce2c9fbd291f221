"""Scores of a batch's tokens under a model and its teacher: the forwards up to the head, then `token_scores`."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from balora.fused.chunks import CHUNK_ELEMENTS
from balora.fused.head import CHECKED_INPUTS, Head, autocast_of, head_aside, head_of, why_not_scored
from balora.fused.token_scores import TokenScores, joined_scores, token_scores
from balora.utils.batches import count_rows
from balora.utils.modules import evaluation_mode


@dataclass
class Reader:
    """A forward, read up to its head where the head is a plain linear layer, else up to its logits.

    Attributes:
        forward: Called with a model's inputs.
        model: The model whose modules it calls, with or without an adapter; `None` if unknown.
        pretrained: Whether the forward switches the model's adapter off.
    """

    forward: Callable[..., Any]
    model: nn.Module | None
    pretrained: bool = False

    def __post_init__(self) -> None:
        self.base = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        self._takes_head: bool | None = None
        # A cache of keys and values would take memory for nothing.
        uncached = self.base is not None and "use_cache" in inspect.signature(self.base.forward).parameters
        self._settings = {"use_cache": False} if uncached else {}

    @property
    def head(self) -> Head | None:
        """The head of what `hidden_states` returned; `None` if these are logits."""
        return head_of(self.base, pretrained=self.pretrained) if self._takes_head else None

    def takes_head(self, inputs: dict[str, Any]) -> bool:
        """Return whether the head can be left out; the first batch is tried, and a head that cannot is warned of."""
        if self._takes_head is None:
            reason = self._why_logits(inputs)
            self._takes_head = reason is None
            if reason is not None:
                warnings.warn(
                    f"balora: {type(self.base or self.forward).__name__} is measured on whole logits, a few rows at a "
                    f"time, which takes more time and memory: {reason}"
                )
        return self._takes_head

    def hidden_states(self, inputs: dict[str, Any]) -> Tensor:
        """Return the head's inputs `(B, S, d)`, in the precision that it multiplies in, or logits `(B, S, V)`."""
        length = _length(inputs)  # the positions of a trained prompt come before
        if not self.takes_head(inputs):
            return self._run(**inputs).logits[:, -length:]
        with head_aside(self.base) as received, autocast_of(self.base.get_output_embeddings()) as narrow:
            self._run(**inputs)
        return received[0][:, -length:].to(narrow[0] if narrow else self.head.weight.dtype)

    def rows_of_logits(self, inputs: dict[str, Any]) -> int:
        """Return the number of rows whose logits fit one chunk of the pass over the head, at least 1."""
        config = getattr(self.base, "config", None)
        if config is None:
            return 1
        elements = _length(inputs) * config.get_text_config().vocab_size
        return max(1, CHUNK_ELEMENTS.get(next(self.base.parameters()).device.type, 2**26) // elements)

    def _why_logits(self, inputs: dict[str, Any]) -> str | None:
        if not hasattr(self.base, "get_output_embeddings"):
            return "it is no model of Transformers"
        return why_not_scored(self.base, self._run, inputs, pretrained=self.pretrained)

    @torch.no_grad()
    def _run(self, **inputs: Any) -> Any:
        if self.model is None:
            return self.forward(**inputs)
        with evaluation_mode(self.model):
            return self.forward(**{**self._settings, **inputs})


def teacher_reader(model: nn.Module, teacher: Callable[..., Any] | None) -> Reader:
    """Return the reader of a pretrained function.

    Args:
        model: The adapted model.
        teacher: The function: a model, a method of one, or an object whose `model` computes it; `None` for the
            `BALoraModel`'s own.
    """
    function = teacher or model.teacher_forward
    owner = owner_of(function)
    return Reader(function, owner, pretrained=owner is model)


def owner_of(function: Callable[..., Any]) -> nn.Module | None:
    """Return the model whose modules a forward calls: itself, its `model` or its `__self__`; `None` if unknown."""
    if isinstance(function, nn.Module):
        return function
    owners = (getattr(function, name, None) for name in ("model", "__self__"))
    return next((owner for owner in owners if isinstance(owner, nn.Module)), None)


class TokenScorer:
    """Scores tokens of one batch after another.

    Args:
        model: A language model, adapted or not; its training mode is unchanged.
        teacher: Reader of the pretrained function; `None` without a teacher.
        entropy: Whether to compute entropies too.
    """

    def __init__(self, model: nn.Module | Reader, teacher: Reader | None = None, *, entropy: bool = False) -> None:
        self.entropy = entropy
        self.student = model if isinstance(model, Reader) else Reader(model, model)
        self.teacher = teacher

    def __call__(self, inputs: dict[str, Any], labels: Tensor, counted: Tensor) -> TokenScores:
        """Score the counted positions of a batch, `(M,)` each, in the order of its rows.

        Args:
            inputs: The model's inputs without labels, on its device.
            labels: `(B, S)`, the token that each position predicts; −100 for none.
            counted: `(B, S)`, bool: positions to score.
        """
        parts = [self.of_counted(hidden, labels[rows], counted[rows]) for rows, _, hidden in self.passes(inputs)]
        return joined_scores(parts)

    def of_counted(self, hidden: list[Tensor], labels: Tensor, counted: Tensor) -> TokenScores:
        """Score the counted positions of some rows from what `passes` gave for them."""
        chosen, *taught = (states[:, : counted.shape[1]][counted] for states in hidden)  # (m, d)
        teacher = (*taught, self.teacher.head) if taught else ()
        return token_scores(chosen, self.student.head, labels[counted], *teacher, entropy=self.entropy)

    def passes(self, inputs: dict[str, Any]) -> Iterator[tuple[slice, dict[str, Any], list[Tensor]]]:
        """Yield rows, their inputs, and the hidden states of the student and of a teacher, `(b, S, d)` each.

        These are all rows at once, or, if a model is read up to its logits, as few as fit a chunk of them.
        """
        count = count_rows(inputs)
        readers = [reader for reader in (self.student, self.teacher) if reader is not None]
        step = min(count if reader.takes_head(inputs) else reader.rows_of_logits(inputs) for reader in readers)
        for first in range(0, count, step):
            rows = slice(first, first + step)
            part = _rows_of(inputs, rows, count)
            yield rows, part, [reader.hidden_states(part) for reader in readers]


def _length(inputs: dict[str, Any]) -> int:
    """Return the number of positions that a batch has logits at."""
    return next(inputs[name].shape[1] for name in reversed(CHECKED_INPUTS) if inputs.get(name) is not None)


def _rows_of(inputs: dict[str, Any], rows: slice, count: int) -> dict[str, Any]:
    """Return some rows of a batch of `count` rows."""
    return {
        name: value[rows] if isinstance(value, Tensor) and len(value) == count else value
        for name, value in inputs.items()
    }
