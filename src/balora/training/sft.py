"""`BALoraSFTTrainer`: TRL's data preparation (chat templates, completion-only loss, packing) with the objective."""

from dataclasses import replace
from typing import Any

from peft import PeftConfig
from peft.mapping_func import MODEL_TYPE_TO_PEFT_MODEL_MAPPING
from transformers import AutoTokenizer, PreTrainedModel, Trainer
from trl import SFTTrainer

from balora.adapters.model_checks import check_head_unadapted
from balora.config import BALoraConfig, as_balora_config
from balora.config.unused import reads_own_texts
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.model.build import get_balora_model
from balora.training.collator import adapter_inputs
from balora.training.evaluation import Prediction
from balora.training.packing import PackingMixin
from balora.training.trainer import ObjectiveTrainerMixin, check_model, tokenizer_of
from balora.training.truncation import TruncationMixin

#: A task type for which PEFT's `get_peft_model` builds balora's model. TRL loads the base, adds what its arguments
#: ask for to the configuration (new tokens), and then calls that function.
BUILT_HERE = "BALORA"


def _build(model: PreTrainedModel, config: BALoraConfig, **_: Any) -> BALoraModel:
    tokenizer = config.tokenizer
    if tokenizer is None and (reads_own_texts(config) or config.described.swapped or config.counterfactual_words):
        tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)  # as TRL does for its own use
    built = get_balora_model(model, replace(config, task_type=config.named_task_type), tokenizer=tokenizer)
    check_head_unadapted(built)
    return built


MODEL_TYPE_TO_PEFT_MODEL_MAPPING[BUILT_HERE] = _build


class BALoraSFTTrainer(PackingMixin, ObjectiveTrainerMixin, TruncationMixin, SFTTrainer):
    """TRL's `SFTTrainer` for a `BALoraModel`; takes the same arguments, logs what `BALoraTrainer` logs.

    With `peft_config`, a `BALoraConfig` or PEFT's `LoraConfig`, `model` is a pretrained model or its name, and the
    trainer builds the `BALoraModel`. `processing_class` is then also the tokenizer of self-anchors and counterfactual
    teacher.

    As in TRL, a mixture of experts trains with its router loss, unless `router_aux_loss_coef` is 0.

    Raises:
        BALoraError: If the model is no `BALoraModel` and `peft_config` is missing, its head has an adapter,
            `router_aux_loss_coef` is given for a model without router loss, or packing would join rows of different
            sentences (SeLoRA) or tasks.
    """

    def __init__(self, model: Any, *args: Any, peft_config: PeftConfig | None = None, **kwargs: Any) -> None:
        check_model(model, peft_config)
        if peft_config is not None:
            peft_config = replace(as_balora_config(peft_config))
            peft_config.named_task_type, peft_config.task_type = peft_config.task_type, BUILT_HERE
            peft_config.tokenizer = tokenizer_of(kwargs.get("processing_class"))
        else:
            check_head_unadapted(model)
        super().__init__(model, *args, peft_config=peft_config, **kwargs)
        if adapter_inputs(self.model.balora_config) and (self.args.packing or self.padding_free):
            one = "selora has one sentence vector" if self.model.balora_config.gated else "there is one task"
            raise BALoraError(
                f"packing: it joins several examples into one row, and {one} for each row; leave packing and "
                "padding_free out"
            )
        coefficient, base = self.args.router_aux_loss_coef, self.model.get_base_model()
        if coefficient is not None:
            if coefficient and not hasattr(base, "router_aux_loss_coef"):
                raise BALoraError(f"router_aux_loss_coef: {type(base).__name__} has no router loss; leave it out")
            # TRL only changes the configuration, which the model has already read.
            base.router_aux_loss_coef = coefficient

    def _predict(self, *args: Any) -> Prediction:
        """Run Transformers' step: TRL's would run the model a second time for logits that it discards."""
        return Trainer.prediction_step(self, *args)
