"""Tiny random models of many architectures, and inputs for them."""

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from balora import BALoraConfig, BALoraModel, get_balora_model
from balora.config import renamed

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 97,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 97,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 3,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 1,
}


def widen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set all widths to multiples of 64: bitsandbytes dequantizes narrower weights wrongly on CPUs with AVX512."""
    for sizes in (SMALL, GROUPED):
        monkeypatch.setitem(sizes, "hidden_size", 64)
    monkeypatch.setitem(GPT2, "n_embd", 64)
    for size, value in {"d_model": 64, "d_kv": 16}.items():
        monkeypatch.setitem(T5, size, value)


CAUSAL = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=3.0)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED, logit_scale=0.3)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**GROUPED)),
}
CLASSIFIERS = {
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL, num_labels=3)),
    "roberta": lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SMALL, num_labels=3)),
    "deberta": lambda: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(**SMALL, num_labels=3, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "modernbert": lambda: hf.ModernBertForSequenceClassification(
        hf.ModernBertConfig(**SMALL, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1)
    ),
    "llama-classifier": lambda: hf.LlamaForSequenceClassification(
        hf.LlamaConfig(**GROUPED, num_labels=3, pad_token_id=0)
    ),
}


def t5_with_its_own_head() -> hf.PreTrainedModel:
    """T5 1.1 as Transformers loads it: a checkpoint with `tie_word_embeddings` false and a head beside `shared`."""
    config = hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    model = hf.T5ForConditionalGeneration(config)
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    return model


def with_added_bias(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    model.final_logits_bias.normal_()
    return model


SEQ2SEQ = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "t5-untied": t5_with_its_own_head,
    "mt5": lambda: hf.MT5ForConditionalGeneration(hf.MT5Config(**T5, initializer_factor=0.2)),
    "umt5": lambda: hf.UMT5ForConditionalGeneration(hf.UMT5Config(**T5)),
    "bart": lambda: with_added_bias(hf.BartForConditionalGeneration(hf.BartConfig(**BART))),
    "pegasus": lambda: with_added_bias(hf.PegasusForConditionalGeneration(hf.PegasusConfig(**BART))),
    "m2m100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART)),
    "t5gemma": lambda: hf.T5GemmaForConditionalGeneration(
        hf.T5GemmaConfig(
            # No decoder input is the padding token: without a cache T5Gemma masks it, with one it does not.
            encoder={**GROUPED, "head_dim": 8, "pad_token_id": 95},
            decoder={**GROUPED, "head_dim": 8, "pad_token_id": 95, "final_logit_softcapping": 3.0},
            vocab_size=97,
        )
    ),
}
MIXTURE = {**GROUPED, "num_experts_per_tok": 2}
BALANCED = {"output_router_logits": True, "router_aux_loss_coef": 0.2}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}


def deciding(model: hf.PreTrainedModel) -> hf.PreTrainedModel:
    """Draw the routers' weights wide enough that they clearly prefer some experts."""
    for name, parameter in model.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


#: Mixtures of experts: alone, with shared experts, and with weights that are kept as `(E, in, out)`.
MIXTURES = {
    "mixtral": lambda: deciding(hf.MixtralForCausalLM(hf.MixtralConfig(**MIXTURE, **BALANCED, num_local_experts=4))),
    "qwen2-moe": lambda: deciding(
        hf.Qwen2MoeForCausalLM(
            hf.Qwen2MoeConfig(
                **MIXTURE, **BALANCED, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=40
            )
        )
    ),
    "deepseek-v3": lambda: deciding(
        hf.DeepseekV3ForCausalLM(
            hf.DeepseekV3Config(
                **{**MIXTURE, **LATENT, "num_key_value_heads": 4},
                q_lora_rank=16,
                n_routed_experts=4,
                n_shared_experts=1,
                moe_intermediate_size=24,
                first_k_dense_replace=1,
                n_group=2,
                topk_group=1,
            )
        )
    ),
    "gpt-oss": lambda: deciding(
        hf.GptOssForCausalLM(
            hf.GptOssConfig(
                **{**MIXTURE, **BALANCED, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
                num_local_experts=4,
                head_dim=8,
            )
        )
    ),
}
ALL = CAUSAL | CLASSIFIERS | SEQ2SEQ | MIXTURES
#: One model of each kind, for tests that do not depend on the head.
MODELS = CAUSAL | CLASSIFIERS | {name: SEQ2SEQ[name] for name in ("t5-untied", "bart")}


def make(name: str) -> hf.PreTrainedModel:
    """Build the model of that name with the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return ALL[name]().eval()


def inputs_for(name: str, rows: int = 4, length: int = 12, seed: int = 1) -> dict[str, Tensor]:
    """Return ids, padded on the right in the first row, and labels for the task, padded for a decoder."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 90, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length - 4 :] = 0
    if name in CLASSIFIERS:
        labels = torch.arange(rows) % 3
    elif name in SEQ2SEQ:
        labels = torch.randint(5, 90, (rows, length - 5), generator=generator)  # a decoder's length, not the encoder's
        labels[1, 3:] = -100
        read = torch.cat([torch.zeros_like(ids[:, :1]), labels[:, :-1].clamp(min=0)], 1)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": read, "labels": labels}
    else:
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :3] = -100  # a prompt
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def word_tokenizer(closes: bool = True) -> hf.PreTrainedTokenizerFast:
    """A tokenizer of few words with T5's special tokens; one that `closes` ends every text with `</s>`."""
    words = ["<pad>", "</s>", "<unk>", "a", "b", "c", "b:", "entailment", "not_entailment", "2.6", "0.0", "5.0"]
    words += ["nan", "inf", "he", "she"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if closes:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def without_labels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in inputs.items() if key != "labels"}


def off_its_start(model: torch.nn.Module, dropout: float = 0.0) -> torch.nn.Module:
    """Return the model in training mode with deterministic noise on its adapter, except on the bias path's b."""
    generator = torch.Generator().manual_seed(5)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "bias_path" not in key:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.1 * noise.to(parameter)
    for module in model.modules():
        for rate in ("p", "dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, dropout)
    return model.train()


def train_steps(model: torch.nn.Module, inputs: dict[str, Tensor], steps: int = 3, lr: float = 1e-2) -> None:
    """Train in a plain loop; leave the model in evaluation mode."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        model.set_progress(step / steps)
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def with_reg(initialization: str) -> str:
    """Return the name of the method with the published regularizers."""
    return renamed(initialization, regularized=True)


def trained(name: str, method: str, **settings) -> BALoraModel:
    """Return a tiny model with an adapter on every linear layer, trained for three steps."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    model = get_balora_model(make(name), BALoraConfig(method=with_reg(method), **settings))
    train_steps(model, inputs_for(name))
    return model
