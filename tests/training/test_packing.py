"""Packed rows: models that keep them apart train, and others are refused before training."""

import pytest
import torch
import transformers as hf
from datasets import Dataset
from tiny_models import CAUSAL, make, word_tokenizer
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import balora
from balora.errors import BALoraError
from balora.training.packing import check_packing
from balora.training.sft import BALoraSFTTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = {"hidden_size": 32, "vocab_size": 97}
MIXING = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**SHAPE, n_layer=2, n_head=4)),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**SHAPE, num_hidden_layers=2, state_size=4)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**SHAPE, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32)
    ),
    "mpt": lambda: hf.MptForCausalLM(hf.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=97, max_seq_len=64)),
}


def collator() -> DataCollatorForLanguageModeling:
    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_keep_rows_apart_pass(name, dtype):
    check_packing(make(name).to(dtype), collator())


@pytest.mark.parametrize("name", MIXING)
def test_models_that_read_across_rows_are_refused(name):
    torch.manual_seed(0)
    with pytest.raises(BALoraError, match=r"packing: .*ForCausalLM reads across packed rows"):
        check_packing(MIXING[name](), collator())


@pytest.mark.parametrize("joined", [{"packing": True, "max_length": 9}, {"padding_free": True, "max_length": None}])
@pytest.mark.parametrize(("name", "right"), [("llama", True), ("bloom", False)])
def test_the_trainer_checks_before_it_trains(tmp_path, name, right, joined):
    torch.manual_seed(0)
    model = make(name) if right else MIXING[name]()
    settings = {"target_modules": "all-linear", "anchor_weight": 0.0, "r": 2}
    trainer = BALoraSFTTrainer(
        model=balora.get_balora_model(model, balora.BALoraConfig(method="lora+reg", **settings)),
        args=SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", bf16=False, **joined),
        processing_class=word_tokenizer(),
        train_dataset=Dataset.from_list([{"text": "a b c"}, {"text": "b a"}] * 4),
    )
    if right:
        trainer.train()
        assert trainer.state.global_step == 1
    else:
        with pytest.raises(BALoraError, match="packing: BloomForCausalLM reads across packed rows"):
            trainer.train()
        assert trainer.state.global_step == 0
