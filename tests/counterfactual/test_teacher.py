"""The counterfactual teacher, compared with one that runs on every prefix, and a student that learns from it."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tiny_models import inputs_for, make, off_its_start
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.anchors import Anchors
from balora.counterfactual import WORD_LISTS, Swaps

OFF = {"diversity_weight": 0.0, "spectral_weight": 0.0}
ON = {"consistency_weight": 0.5, "consistency_schedule": "constant", **OFF}
PAIRS = [("a", "b"), ("c", "d")]
TRIPLES = [("a", "b", "c"), ("d", "e", "f")]
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out")


def letters() -> hf.PreTrainedTokenizerFast:
    """Build a tokenizer of ten one-letter words; the models' vocabularies are larger."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def adapted(name: str, groups=PAIRS, **settings) -> BALoraModel:
    torch.manual_seed(0)
    settings = {"method": "ba-lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", **ON, **settings}
    has_teacher = settings["consistency_weight"] + settings.get("anchor_weight", 0) > 0
    settings |= {"counterfactual_words": "mine"} if has_teacher else {}
    model = off_its_start(get_balora_model(make(name).double(), BALoraConfig(**settings)))
    if has_teacher:
        model.set_swaps(Swaps(groups, letters()))
    return model


def words(name: str) -> dict[str, Tensor]:
    """Build rows of exchanged and other words, padded on either side."""
    given = inputs_for(name)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.tensor(letters()("a b c d e f g h")["input_ids"])
    ids = tokens[torch.randint(len(tokens), given["input_ids"].shape, generator=generator)]
    mask = given["attention_mask"].clone()
    mask[1] = mask[1].flip(0) if name != "gpt2" else mask[1]  # one row padded on the left
    labels = ids.where(mask == 1, -100)
    return {"input_ids": ids.where(mask == 1, 0), "attention_mask": mask, "labels": labels}


@torch.no_grad()
def naive_log_p(base, swaps: Swaps, inputs: dict[str, Tensor], temperature: float) -> list[Tensor]:
    """Compute log P̃ `(V,)` of the next token for each token that is not padding, by a pass over every prefix."""
    found = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        text = ids[mask].tolist()
        for end in range(1, len(text) + 1):
            total = (base(torch.tensor([text[:end]])).logits[0, -1] / temperature).softmax(-1)
            for steps in range(1, swaps.size):
                other = torch.tensor([swaps.swapped(text[:end], steps).ids])
                p = (base(other).logits[0, -1] / temperature).softmax(-1)
                partners = torch.arange(len(p))
                partners[: len(swaps.partners(steps))] = swaps.partners(steps)
                total = total + p[partners]
            found.append((total / swaps.size).log())
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("groups", [PAIRS, TRIPLES], ids=["pairs", "triples"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_consistency_uses_the_average_over_exchanges(name, groups, fused, direction):
    model = adapted(name, groups, fused_lm_head=fused, consistency_direction=direction)
    inputs = words(name)
    output = model(**inputs)
    output.loss.backward()
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    base = make(name).double().eval()
    swaps, mask = Swaps(groups, letters()), inputs["attention_mask"].bool()
    log_p = torch.stack(naive_log_p(base, swaps, inputs, 2.0))  # (M, V)
    model.zero_grad()
    given = {"input_ids": inputs["input_ids"], "attention_mask": mask.long()}
    log_q = (model(**given).logits[mask] / 2.0).log_softmax(-1)
    one, other = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    naive = 4 * F.kl_div(one, other, log_target=True, reduction="sum") / mask.sum()
    torch.testing.assert_close(output.components["consistency"].double(), naive.detach(), rtol=1e-4, atol=1e-9)
    (0.5 * naive).backward()
    by_hand = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    task = adapted(name, groups, fused_lm_head=fused, consistency_weight=0.0)
    task(**inputs).loss.backward()
    for key, parameter in task.named_parameters():
        if parameter.grad is not None:
            expected = parameter.grad + by_hand[key]
            torch.testing.assert_close(found[key], expected, rtol=1e-3, atol=1e-5 * expected.abs().max(), msg=key)


@pytest.mark.parametrize("name", ["llama", "llama-bias"])
def test_bfloat16_is_close_to_float32(name):
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = adapted("llama").float()
        if name == "llama-bias":
            model.get_base_model().lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 97), requires_grad=False)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            found[dtype] = model(**words("llama")).components["consistency"]
    torch.testing.assert_close(found[torch.bfloat16].float(), found[torch.float32].float(), rtol=0.1, atol=1e-3)


def test_anchors_use_the_counterfactual_teacher():
    model = adapted("llama", consistency_weight=0.0, anchor_weight=0.7, anchor_share=1.0)
    given = words("llama")
    anchors = Anchors(given["input_ids"][:1], given["attention_mask"][:1])
    model.set_anchors(anchors)
    found = {}
    for fused in (True, False):
        model._fused = fused
        found[fused] = model(**words("llama")).components["anchor"]
    one = {"input_ids": anchors.input_ids, "attention_mask": anchors.attention_mask}
    log_p = torch.stack(naive_log_p(make("llama").double().eval(), Swaps(PAIRS, letters()), one, 1.0))
    log_q = model(**one).logits[one["attention_mask"].bool()].log_softmax(-1)
    naive = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean").detach()
    for value in found.values():
        torch.testing.assert_close(value.double(), naive, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
def test_words_of_several_tokens_in_a_pretrained_model(models_dir):
    """Positions without correspondence use the pretrained model; others match prefixes of other lengths."""
    tokenizer = hf.AutoTokenizer.from_pretrained(models_dir / "stories260k")
    texts = ["The policeman gave his mother a ball. She said", "Lily and her brother saw a king"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    swaps = Swaps(WORD_LISTS["gender"], tokenizer)
    base = hf.AutoModelForCausalLM.from_pretrained(models_dir / "stories260k").double().eval()
    expected = []
    with torch.no_grad():
        for row in rows:
            swapped = swaps.swapped(row, 1)
            assert swapped.words >= 3
            plain, other = ((base(torch.tensor([x])).logits[0] / 2).softmax(-1) for x in (row, swapped.ids))
            for position, place in enumerate(swapped.places):
                p = plain[position]
                expected.append(p if place < 0 else (p + other[place][swaps.partners(1)]) / 2)
    assert len(swaps.swapped(rows[0], 1).ids) != len(rows[0])
    log_p = torch.stack(expected).log()
    config = BALoraConfig(method="lora+reg", r=4, target_modules="all-linear", counterfactual_words="gender", **ON)
    for fused in (True, False):
        config.fused_lm_head = fused
        model = off_its_start(get_balora_model(copy.deepcopy(base), config))
        model.set_swaps(swaps)
        found = model(input_ids=ids, attention_mask=mask, labels=ids.where(mask == 1, -100)).components["consistency"]
        log_q = (model(input_ids=ids, attention_mask=mask).logits[mask.bool()] / 2).log_softmax(-1)
        naive = 4 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        torch.testing.assert_close(found, naive.detach(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("cache", [0, 64])
def test_teacher_of_a_classifier_averages_class_probabilities(cache):
    inputs = words("bert")
    inputs["labels"] = torch.tensor([0, 1, 2, 0])[: len(inputs["input_ids"])]
    inputs["token_type_ids"] = (torch.arange(inputs["input_ids"].shape[1]) > 3).long().expand_as(inputs["input_ids"])
    model = adapted("bert", method="lora+reg", teacher_cache_mb=cache, target_modules=["query", "value"])
    for _ in range(2):  # the second reads what the first kept
        found = model(**inputs).components["consistency"]
    swaps = Swaps(PAIRS, letters())
    p = 0
    for steps in (0, 1):
        given = {key: value.clone() for key, value in inputs.items() if key != "labels"}
        if steps:  # one token for one token: types stay where they are
            given["input_ids"] = torch.tensor([swaps.swapped(row, 1).ids for row in given["input_ids"].tolist()])
        p = p + (model.teacher_forward(**given).logits / 2).softmax(-1) / 2
    log_q = (model.eval()(**{k: v for k, v in inputs.items() if k != "labels"}).logits / 2).log_softmax(-1)
    naive = 4 * F.kl_div(log_q, p.log(), log_target=True, reduction="batchmean")
    torch.testing.assert_close(found.double(), naive.detach(), rtol=1e-5, atol=1e-9)


def test_student_loses_the_teachers_preference():
    """A model that prefers a word to its partner is trained with both kinds of teacher."""
    skew = {}
    tokenizer = letters()
    a, b = (tokenizer(word)["input_ids"][0] for word in "ab")
    ids = torch.tensor([tokenizer("e f g h e g")["input_ids"]] * 4)
    for groups in (None, PAIRS):
        base = make("llama")
        with torch.no_grad():
            base.lm_head.weight[a] *= 8
        torch.manual_seed(0)
        own = None if groups is None else "mine"
        config = BALoraConfig(
            method="lora+reg", r=4, target_modules="all-linear", counterfactual_words=own,
            **{**ON, "consistency_weight": 5.0, "temperature": 1.0},
        )  # fmt: skip
        model = get_balora_model(base, config).train()
        if groups is not None:
            model.set_swaps(Swaps(groups, tokenizer))
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        labels = torch.full_like(ids, -100)
        for _ in range(80):
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        p = model.eval()(input_ids=ids[:1]).logits[0].log_softmax(-1)
        skew[own] = (p[:, a] - p[:, b]).abs().mean().item()
    assert skew["mine"] < 0.4 * skew[None]


# ---------------------------------------------------------------------- errors


def test_words_without_swaps_and_swaps_without_words_raise():
    model = get_balora_model(make("llama"), BALoraConfig(counterfactual_words="gender", target_modules="all-linear"))
    with pytest.raises(BALoraError, match=r"call model.set_swaps\(Swaps\(read_word_groups\('gender'\)"):
        model.train()(**inputs_for("llama"))
    plain = get_balora_model(make("llama"), BALoraConfig(target_modules="all-linear"))
    with pytest.raises(BALoraError, match="not set in the configuration"):
        plain.set_swaps(Swaps(PAIRS, letters()))


def test_packed_rows_and_sequence_to_sequence_models_raise():
    model = adapted("llama")
    given = words("llama")
    with pytest.raises(BALoraError, match="one text per row"):
        model(**given, position_ids=torch.arange(given["input_ids"].shape[1]).expand_as(given["input_ids"]))
    with pytest.raises(BALoraError, match="only for causal language models and classifiers"):
        get_balora_model(make("t5"), BALoraConfig(counterfactual_words="gender"))


def test_capped_logits_are_averaged_on_whole_logits():
    with pytest.warns(UserWarning, match="an average of capped logits"):
        model = adapted("gemma2")
    assert model._fused is False
