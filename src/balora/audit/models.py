"""The two models of an audit: the base, and the model tuned from it.

The adapter is switched off for the base if that restores the pretrained function to the bit
(`balora.adapters.loading.BaseFunction`); if it does not, and for models tuned in full, the base is loaded beside it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import torch
from accelerate import PartialState
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from balora.adapters.loading import (
    BaseFunction,
    compare_first_tokens,
    load_adapter,
    read_weights,
    resize_to_adapter,
)
from balora.adapters.teacher import adapter_disabled
from balora.audit.kinds import CAUSAL, CLASSES, CLASSIFIER, DTYPES, configs_of, kind_of, label_names_of
from balora.baselines.trained_parameters import TRAINED_FILE, load_trained_parameters
from balora.data import context_length
from balora.data.special_tokens import set_pad_token
from balora.data.vocabulary import check_vocabulary, guard_embeddings
from balora.errors import BALoraError
from balora.fused import Reader
from balora.utils.loading import load

Model = PreTrainedModel | PeftModel

HEADLESS = "The base has no trained head for this task: its figures are those of its features under the tuned head."


@dataclass(frozen=True)
class Audited:
    """A tuned model and its base, both in evaluation mode.

    Attributes:
        tuned: The tuned model; the base itself where nothing else is audited.
        tokenizer: Of both.
        kind: Kind of model, one of `balora.audit.kinds.KINDS`' values.
        alone: Whether the base alone is audited.
        beside: The base where it is a model of its own, else `None`.
        notes: Remarks for the reader of the audit.
    """

    tuned: Model
    tokenizer: PreTrainedTokenizerBase
    kind: str
    alone: bool = False
    beside: PreTrainedModel | None = None
    notes: tuple[str, ...] = ()

    @contextmanager
    def as_base(self) -> Iterator[Model]:
        """Context manager: yield a model that computes the base's function."""
        if self.beside is not None or self.alone:
            yield self.beside or self.tuned
            return
        # The inner model leaves out trained prompts as well, which are no layers.
        with adapter_disabled(self.tuned):
            yield self.tuned.get_base_model()

    @torch.no_grad()
    def both(self, **inputs: Any) -> tuple[Any, Any]:
        """Return the outputs of base and tuned model for the same inputs, which are moved to their device."""
        inputs = {k: v.to(self.tuned.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        after = self.tuned(**inputs)
        if self.alone:
            return after, after
        with self.as_base() as base:
            return base(**inputs), after

    def base_reader(self) -> Reader:
        """Return the reader of the base's tokens, for measurements on both models."""
        if self.beside is not None:
            return Reader(self.beside, self.beside)

        def without_adapter(**inputs: Any) -> Any:
            with self.as_base() as base:
                return base(**inputs)

        return Reader(without_adapter, self.tuned, pretrained=True)

    def answers(self, ask: Callable[[Model], Any]) -> tuple[Any | None, Any]:
        """Return what base and tuned model answer; `None` of the base where there is one model."""
        after = ask(self.tuned)
        if self.alone:
            return None, after
        with self.as_base() as base:
            return ask(base), after

    def context(self, max_length: int | None = None) -> int | None:
        """Return the tokens that both models take at once, at most `max_length`; `None` without a limit."""
        own = context_length(self.tuned.config, self.tokenizer)
        if own is not None and isinstance(self.tuned, PeftModel) and self.tuned.active_peft_config.is_prompt_learning:
            own -= self.tuned.active_peft_config.num_virtual_tokens
        return min(filter(None, (own, max_length)), default=None)


def load_audited(
    model: str, adapter: str | None = None, *, dtype: str = "auto", use_safetensors: bool = True
) -> Audited:
    """Load the base and the tuned model.

    Args:
        model: The base: a folder, or a name on the Hub.
        adapter: Folder of a PEFT adapter, or of a model tuned in full; `None` audits the base alone.
        dtype: Of the weights, one of `balora.audit.kinds.DTYPES`; `auto` for the one they were saved in.
        use_safetensors: Refuse pickles.

    Raises:
        BALoraError: If one does not load, or the two do not fit.
    """
    check_dtype(dtype)
    _, peft_config = configs_of(model, adapter)
    kind = kind_of(model, adapter)
    settings: dict[str, Any] = {"dtype": dtype, "use_safetensors": use_safetensors}
    if kind == CLASSIFIER:
        settings |= {"num_labels": len(label_names_of(model, adapter)), "ignore_mismatched_sizes": True}
    base, loading = load(CLASSES[kind], model, "model", output_loading_info=True, **settings)
    base.eval().to(PartialState().device)
    # A head with another number of classes does not count as trained.
    lacking = sorted({*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])})
    has_own = adapter is not None and (Path(adapter) / "tokenizer_config.json").is_file()
    tokenizer = load(AutoTokenizer, adapter if has_own else model, "adapter" if has_own else "model")
    set_pad_token(tokenizer, source=f"adapter: {adapter}" if has_own else f"model: {model}")
    if adapter is not None and kind == CAUSAL and (Path(adapter) / GENERATION_CONFIG_NAME).is_file():
        # Both models stop where the tuned one learned to.
        base.generation_config.eos_token_id = load(GenerationConfig, adapter, "adapter").eos_token_id
    _guard_embeddings(base, tokenizer, model)
    # A decoder that classifies finds the last token by it.
    base.config.pad_token_id = tokenizer.pad_token_id
    if adapter is None:
        if lacking:
            raise BALoraError(f"model: {model} has no {lacking[0]}, so it is no trained {kind} that could be audited")
        return Audited(base, tokenizer, kind, alone=True)
    notes = (HEADLESS,) if lacking else ()
    if peft_config is None:
        in_part = (Path(adapter) / TRAINED_FILE).is_file()
        own = settings if in_part else {"dtype": dtype, "use_safetensors": use_safetensors}
        tuned = load(CLASSES[kind], model if in_part else adapter, "model" if in_part else "adapter", **own)
        tuned = (load_trained_parameters(tuned, adapter) if in_part else tuned).eval().to(base.device)
        tuned.config.pad_token_id = tokenizer.pad_token_id
        if not in_part:
            _check_fit(base, tuned, model, adapter)
        _complete(base, lacking, tuned.state_dict(), model, adapter)
        return Audited(tuned, tokenizer, kind, beside=base, notes=notes)
    named = peft_config.base_model_name_or_path
    if named and Path(named).name != Path(model).name:
        notes += (f"The adapter says that it was trained on {named}; it was put on {model}.",)
    state = read_weights(adapter, base.device, use_safetensors=use_safetensors)
    _complete(base, lacking, state, model, adapter)
    pretrained = BaseFunction.of(base)
    common = resize_to_adapter(base, state)
    if common is not None:
        guard_embeddings(base, tokenizer, source=f"adapter: {adapter}")
    tuned = _with_adapter(base, adapter, peft_config)
    if pretrained.is_restored(tuned):
        return Audited(tuned, tokenizer, kind, notes=notes)
    beside = load(CLASSES[kind], model, "model", **settings).eval().to(base.device)
    beside.config.pad_token_id = tokenizer.pad_token_id
    _guard_embeddings(beside, tokenizer, model)
    _complete(beside, lacking, state, model, adapter)
    if common is not None and beside.get_output_embeddings() is not None:
        notes += (f"The adapter has another vocabulary than the base; the {common} tokens of both are compared.",)
        compare_first_tokens((tuned, beside), common)
    return Audited(tuned, tokenizer, kind, beside=beside, notes=notes)


def _guard_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that the tokenizer's own tokens have embeddings, and added ones whenever a text uses them."""
    source = f"model: {name}"
    check_vocabulary(tokenizer, model.get_input_embeddings().num_embeddings, {}, source=source)
    guard_embeddings(model, tokenizer, source=source)


def check_dtype(dtype: str) -> None:
    """Validate the type of the weights.

    Raises:
        BALoraError: If it is unknown.
    """
    if dtype not in DTYPES:
        raise BALoraError(f"dtype: {dtype!r} is none of {', '.join(DTYPES)}")


def _with_adapter(base: PreTrainedModel, adapter: str, peft_config: PeftConfig) -> PeftModel:
    with catch_warnings():
        filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        tuned, loaded = load_adapter(base, adapter)
    tuned.eval()
    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[peft_config.peft_type]
    if wrong := [key for key in (*loaded.missing_keys, *loaded.unexpected_keys) if prefix in key]:
        raise BALoraError(
            f"adapter: {adapter} does not fit {type(base).__name__}: {wrong[0]} is in one of the two alone; "
            "give the model that it was trained on"
        )
    if peft_config.is_prompt_learning:
        tuned.register_forward_hook(_without_prompt, with_kwargs=True)
    return tuned


def _without_prompt(module: nn.Module, args: tuple, inputs: dict[str, Any], output: Any) -> None:
    """Forward hook: keep the outputs of the inputs' own tokens, which follow those of a trained prompt."""
    length = inputs["input_ids"].shape[1]
    if output.logits.ndim == 3:  # a classifier's has none of tokens
        output.logits = output.logits[:, -length:]
    if output.hidden_states is not None:
        output.hidden_states = tuple(states[:, -length:] for states in output.hidden_states)


def _check_fit(base: PreTrainedModel, tuned: PreTrainedModel, model: str, adapter: str) -> None:
    """Check that a fully fine-tuned model has the base's parameters, and a head that the base lacks."""
    shapes = [{name: tuple(p.shape) for name, p in one.state_dict().items()} for one in (base, tuned)]
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        before, after = (own.get(name, "absent") for own in shapes)
        if before != after:
            raise BALoraError(
                f"adapter: {adapter} is no fine-tune of {model}: {name} is {after} in the one, {before} in the other"
            )


@torch.no_grad()
def _complete(
    base: PreTrainedModel, lacking: list[str], state: Mapping[str, Tensor], model: str, adapter: str
) -> None:
    """Copy the head that the base lacks from the tuned model."""
    own = base.state_dict()
    for name in lacking:
        found = state.get(name, state.get(f"base_model.model.{name}", state.get(f"base_model.{name}")))
        if found is None or found.shape != own[name].shape:
            raise BALoraError(f"adapter: {adapter} has no {name}, nor has {model}; save it with its head")
        own[name].copy_(found)
