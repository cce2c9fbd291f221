"""Trainable parameters on DeBERTa-v3-base against the counts printed for GLUE (AdaLoRA, table 1; BA-LoRA)."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model

from balora.baselines import make_baseline
from balora.utils.modules import trainable_parameters

D, LAYERS, FEED_FORWARD, VOCABULARY = 768, 12, 3072, 128_100


def deberta_v3_base() -> hf.PreTrainedModel:
    """DeBERTa-v3-base on the meta device, without a head."""
    config = hf.DebertaV2Config(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=FEED_FORWARD,
        type_vocab_size=0,
        position_biased_input=False,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    )
    with torch.device("meta"):
        return hf.DebertaV2Model(config)


def bottlenecks(number: int, m: int) -> int:
    return number * (2 * D * m + D + m)


#: Method, bottleneck width, count by formula, and millions as printed.
PRINTED = [
    ("full", None, 98_380_800 + 2 * D + LAYERS * 7_087_872 + 512 * D + 2 * D, "184"),
    ("bitfit", None, D + D + LAYERS * (4 * D + D + FEED_FORWARD + D + D), "0.1"),
    ("houlsby", 16, bottlenecks(2 * LAYERS, 16), "0.61"),
    ("houlsby", 8, bottlenecks(2 * LAYERS, 8), "0.31"),
    ("pfeiffer", 32, bottlenecks(LAYERS, 32), "0.60"),
    ("pfeiffer", 16, bottlenecks(LAYERS, 16), "0.30"),
]


@pytest.mark.parametrize(("method", "width", "formula", "printed"), PRINTED)
def test_the_count_equals_the_formula_and_rounds_to_the_printed_count(method, width, formula, printed):
    settings = {} if width is None else {"bottleneck_size": width}
    count = trainable_parameters(make_baseline(deberta_v3_base(), method, **settings))
    assert count == formula
    decimals = len(printed.partition(".")[2])
    assert f"{count / 1e6:.{decimals}f}" == printed


@pytest.mark.parametrize(("method", "width", "printed"), [("houlsby", 32, 1.22e6), ("pfeiffer", 64, 1.18e6)])
def test_the_widest_adapters_are_within_two_per_cent_of_the_printed_counts(method, width, printed):
    count = trainable_parameters(make_baseline(deberta_v3_base(), method, bottleneck_size=width))
    assert count == pytest.approx(printed, rel=0.02)
    assert count == bottlenecks({"houlsby": 2 * LAYERS, "pfeiffer": LAYERS}[method], width)


def test_lora_on_all_six_matrices_has_the_printed_count():
    targets = ["query_proj", "key_proj", "value_proj", "dense"]
    count = trainable_parameters(get_peft_model(deberta_v3_base(), LoraConfig(r=8, target_modules=targets)))
    assert count == LAYERS * 8 * (4 * (D + D) + 2 * (D + FEED_FORWARD))
    assert f"{count / 1e6:.2f}" == "1.33"
