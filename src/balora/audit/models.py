"""The two models of an audit: the base, and what was made of it, whoever trained it.

An adapter steps aside for the base where that leaves the pretrained function, which is tried on a few tokens; where it
does not (PEFT's PiSSA, OLoRA or CorDA, whose loading changes the base's weights), and for models tuned in full, the
base is loaded beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from balora.adapters.teacher import student_aside
from balora.agreement import agree
from balora.errors import BALoraError

Model = PreTrainedModel | PeftModel

CAUSAL, CLASSIFIER, MASKED = "causal language model", "classifier", "masked language model"
#: By the end of an architecture's name.
KINDS = {
    "ForCausalLM": CAUSAL,
    "LMHeadModel": CAUSAL,
    "ForSequenceClassification": CLASSIFIER,
    "ForMaskedLM": MASKED,
}
CLASSES = {
    CAUSAL: AutoModelForCausalLM,
    CLASSIFIER: AutoModelForSequenceClassification,
    MASKED: AutoModelForMaskedLM,
}
ADAPTER_FILE = "adapter_config.json"
HEADLESS = "The base has no trained head for this task: its figures are those of its features under the tuned head."


@dataclass(frozen=True)
class Audited:
    """A tuned model and its base, both in evaluation mode.

    Attributes:
        tuned: The tuned model; the base itself where nothing else is audited.
        tokenizer: Of both.
        kind: One of `KINDS`' values.
        alone: Whether there is no second model.
        beside: The base where it is a model of its own, else `None`.
        own_head: Whether the base classifies by a head of its own; otherwise the tuned model's serves both.
        notes: What the reader of the audit must know of them.
    """

    tuned: Model
    tokenizer: PreTrainedTokenizerBase
    kind: str
    alone: bool
    beside: PreTrainedModel | None
    own_head: bool
    notes: tuple[str, ...]

    @contextmanager
    def as_base(self) -> Iterator[Model]:
        """Within, what it yields computes the base's function."""
        if self.beside is not None or self.alone:
            yield self.beside or self.tuned
            return
        # The model inside: prompts, which are no layers, are then left out as well.
        with student_aside(self.tuned, live_head=not self.own_head):
            yield self.tuned.get_base_model()

    @torch.no_grad()
    def both(self, **inputs: Any) -> tuple[Any, Any]:
        """Outputs of base and tuned model for the same inputs, which are brought to their device."""
        inputs = {k: v.to(self.tuned.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        after = self.tuned(**inputs)
        if self.alone:
            return after, after
        with self.as_base() as base:
            return base(**inputs), after


def kind_of(model: str, adapter: str | None) -> str:
    """What kind of model it is, by the configurations alone: one of `KINDS`' values.

    Raises:
        BALoraError: If one does not load, or it is no kind that can be audited.
    """
    config, peft_config = _configs(model, adapter)
    names = {"CAUSAL_LM": "ForCausalLM", "SEQ_CLS": "ForSequenceClassification"}
    task = None if peft_config is None else peft_config.task_type
    architecture = names.get(task) or next(iter(config.architectures or []), "")
    kind = next((kind for end, kind in KINDS.items() if architecture.endswith(end)), None)
    if kind is None:
        raise BALoraError(
            f"model: {architecture or 'an architecture without a name'} cannot be audited; "
            "causal language models, sequence classifiers and masked language models can"
        )
    return kind


def label_names_of(model: str, adapter: str | None) -> list[str]:
    """A classifier's classes by id: as its configuration names them, or `0`, `1` … of an adapter's head."""
    config, peft_config = _configs(model, adapter)
    count = config.num_labels if peft_config is None else _rows_of_head(adapter) or config.num_labels
    if count == config.num_labels:
        return [config.id2label[i] for i in range(count)]
    return [str(i) for i in range(count)]


def load_audited(model: str, adapter: str | None = None, *, dtype: str = "auto") -> Audited:
    """Load both.

    Args:
        model: The base: a folder, or a name on the Hub.
        adapter: Folder of a PEFT adapter, or of a model tuned in full; `None` audits the base alone.
        dtype: Of the weights, a name of torch's, or `auto` for the one they were saved in.

    Raises:
        BALoraError: If one does not load, or the two do not fit.
    """
    _, peft_config = _configs(model, adapter)
    kind = kind_of(model, adapter)
    settings: dict[str, Any] = {"dtype": dtype}
    if kind == CLASSIFIER:
        settings["num_labels"] = len(label_names_of(model, adapter))
    base, loading = _loaded(CLASSES[kind], model, "model", output_loading_info=True, **settings)
    base.eval().to(PartialState().device)
    own_head = not loading["missing_keys"] and not loading["mismatched_keys"]
    tokenizer = _loaded(AutoTokenizer, _tokenizer_of(model, adapter), "model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if adapter is None:
        if not own_head:
            raise BALoraError(f"model: {model} has no trained head as a {kind}, so there is nothing to audit yet")
        return _audited(base, tokenizer, kind, alone=True)
    notes = () if own_head else (HEADLESS,)
    if peft_config is None:
        tuned = _loaded(CLASSES[kind], adapter, "adapter", dtype=dtype).eval().to(base.device)
        if not own_head:
            _share_head(base, tuned)
        return _audited(tuned, tokenizer, kind, beside=base, own_head=own_head, notes=notes)
    named = peft_config.base_model_name_or_path
    if named and Path(named).name != Path(model).name:
        notes += (f"The adapter says that it was trained on {named}; it was put on {model}.",)
    probe = {"input_ids": torch.arange(3, 11)[None].to(base.device)}
    with torch.no_grad():
        before = base(**probe).logits
        tuned = _with_adapter(base, adapter).eval()
        with student_aside(tuned):
            aside_is_exact = agree(tuned.get_base_model()(**probe).logits, before)
    if aside_is_exact:
        return _audited(tuned, tokenizer, kind, own_head=own_head, notes=notes)
    beside = _loaded(CLASSES[kind], model, "model", **settings).eval().to(base.device)
    if not own_head:
        _share_head(beside, tuned.get_base_model())
    return _audited(tuned, tokenizer, kind, beside=beside, own_head=own_head, notes=notes)


def _audited(
    tuned: Model,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    *,
    alone: bool = False,
    beside: PreTrainedModel | None = None,
    own_head: bool = True,
    notes: tuple[str, ...] = (),
) -> Audited:
    for model in filter(None, (tuned, beside)):
        model.config.pad_token_id = tokenizer.pad_token_id  # by which a decoder that classifies finds the last token
    return Audited(tuned, tokenizer, kind, alone, beside, own_head, notes)


def _configs(model: str, adapter: str | None) -> tuple[PreTrainedConfig, PeftConfig | None]:
    """The tuned model's configuration, and the adapter's where it is one."""
    if adapter is None:
        return _loaded(AutoConfig, model, "model"), None
    if (Path(adapter) / ADAPTER_FILE).is_file():
        return _loaded(AutoConfig, model, "model"), _loaded(PeftConfig, adapter, "adapter")
    if (Path(adapter) / "config.json").is_file():
        return _loaded(AutoConfig, adapter, "adapter"), None
    raise BALoraError(
        f"adapter: {adapter} is neither a saved adapter ({ADAPTER_FILE}) nor a saved model (config.json)"
    )


def _rows_of_head(adapter: str) -> int:
    """How many classes an adapter's head tells apart: its last layer has the fewest rows. 0 where it has no head."""
    file = Path(adapter) / "adapter_model.safetensors"
    if not file.is_file():
        raise BALoraError(f"adapter: {adapter} has no adapter_model.safetensors; save it with safetensors")
    with safe_open(file, "pt") as tensors:
        rows = [
            tensors.get_slice(name).get_shape()[0]
            for name in tensors.keys()  # noqa: SIM118 - no mapping
            if "lora_" not in name and name.endswith(".weight") and ("classifier" in name or "score" in name)
        ]
    return min(rows, default=0)


def _tokenizer_of(model: str, adapter: str | None) -> str:
    return adapter if adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file() else model


def _with_adapter(base: PreTrainedModel, adapter: str) -> PeftModel:
    try:
        return PeftModel.from_pretrained(base, adapter)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0]
        raise BALoraError(f"adapter: {adapter} does not fit {type(base).__name__}: {first}") from error


def _share_head(base: PreTrainedModel, tuned: PreTrainedModel) -> None:
    """Give the base the tuned model's modules outside of the backbone."""
    backbone = base.base_model_prefix
    for name, module in tuned.named_children():
        if name != backbone:
            base.add_module(name, module)


def _loaded(auto: Any, name: str, setting: str, **settings: Any) -> Any:
    try:
        return auto.from_pretrained(name, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise BALoraError(f"{setting}: {name!r} does not load with {auto.__name__}: {first}") from error
