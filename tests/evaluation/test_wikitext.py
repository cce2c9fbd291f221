"""Pages, text and perplexities of WikiText: against the file, lm-eval's own text, and one token at a time."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import word_tokenizer

from balora import BALoraConfig, get_balora_model
from balora.errors import BALoraError
from balora.evaluation.perplexity import detokenize, read_pages, split_pages, wikitext_perplexity


@pytest.mark.parametrize(("split", "count"), [("test", 62), ("valid", 60)])
def test_pages_are_those_of_the_published_file(data_dir, split, count):
    path = data_dir / "wikitext2" / f"{split}.txt"
    pages = read_pages(path)
    assert len(pages) == count  # as many as in EleutherAI/wikitext_document_level
    assert "\n".join([" ", *pages]) == path.read_text(encoding="utf-8")
    assert all(re.match(r" = [^=]", page) for page in pages)
    assert sum(" \n = = " in page for page in pages) > count / 2


@given(st.lists(st.text("= a", max_size=12)))
def test_a_page_begins_with_each_first_level_heading(lines):
    expected = [[]]
    for line in lines:
        marks = re.sub("=( =)+", lambda found: found[0].replace(" ", ""), line).strip()
        if marks.startswith("= ") and marks.endswith(" ="):
            expected.append([])
        expected[-1].append(line)
    assert split_pages(lines) == [page for page in map("\n".join, expected) if page.strip()]


def test_text_is_lm_eval_s_on_every_page(data_dir):
    reference = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    pages = [page for split in ("test", "valid") for page in read_pages(data_dir / "wikitext2" / f"{split}.txt")]
    assert [detokenize(page) for page in pages] == [reference({"page": page}) for page in pages]


@given(st.text("sN1'\"@-.,:;!?()[]{}=° \n", max_size=60))
def test_text_is_lm_eval_s_on_any_page(page):
    reference = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext").wikitext_detokenizer
    assert detokenize(page) == reference({"page": page})


def test_text_reads_like_text():
    page = 'the two @-@ part episode , " Teddy \'s Story " ( of 1 @,@ 000 ) . '
    assert detokenize(page) == 'the two-part episode, "Teddy\'s Story" (of 1,000). '


@torch.no_grad()
def one_at_a_time(model, ids: list[int], prefix: int, context: int) -> float:
    """−Σ log p, each token after as much of its window as is before it."""
    total = 0.0
    for end in [*range(context, len(ids), context), len(ids)]:
        counted = range((end - 1) // context * context, end)
        first = max(end - context, 0)  # the last window reaches back
        for i in counted:
            before = [prefix, *ids][first : i + 1]
            total -= model(torch.tensor([before])).logits[0, -1].log_softmax(-1)[ids[i]].item()
    return total


@pytest.mark.parametrize(("context", "batch_size"), [(16, 3), (20, 1), (512, 2)])
def test_perplexities_are_those_of_one_token_at_a_time(model, tokenizer, data_dir, context, batch_size):
    pages = [page[:150] for page in read_pages(data_dir / "wikitext2/test.txt")[:2]]
    rows = [tokenizer(detokenize(page))["input_ids"] for page in pages]
    assert all(len(ids) % width for ids in rows for width in (16, 20))  # a last window that reaches back
    loss = sum(one_at_a_time(model, ids, tokenizer.bos_token_id, context) for ids in rows)
    words, size = sum(len(re.split(r"\s+", page)) for page in pages), len("".join(pages).encode())
    expected = {
        "word_perplexity": math.exp(loss / words),
        "byte_perplexity": math.exp(loss / size),
        "bits_per_byte": loss / size / math.log(2),
        "token_perplexity": math.exp(loss / sum(map(len, rows))),
    }
    got = wikitext_perplexity(model, tokenizer, pages, context=context, batch_size=batch_size)
    assert got == pytest.approx(expected, rel=1e-4)
    if context == 512:
        assert wikitext_perplexity(model, tokenizer, pages, context=None) == pytest.approx(got, rel=1e-6)


def test_an_adapter_in_training_mode_is_read_in_evaluation_mode(model, tokenizer):
    pages = [" = Once = \n \n Once upon a time , there was a little girl . \n"]
    base = wikitext_perplexity(model, tokenizer, pages, context=64)
    adapted = get_balora_model(
        model, BALoraConfig(method="lora+reg", r=4, lora_dropout=0.5, target_modules="all-linear")
    )
    adapted.train()
    assert wikitext_perplexity(adapted, tokenizer, pages, context=64) == pytest.approx(base, rel=1e-5)
    assert adapted.training
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    changed = wikitext_perplexity(adapted, tokenizer, pages, context=64)
    assert abs(changed["bits_per_byte"] - base["bits_per_byte"]) > 1e-3


def test_unreadable_files_are_named(tmp_path, model):
    with pytest.raises(BALoraError, match=r"gone\.txt: no such file"):
        read_pages(tmp_path / "gone.txt")
    with pytest.raises(BALoraError, match="cannot be read as UTF-8"):
        read_pages(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n \n")
    with pytest.raises(BALoraError, match=r"blank\.txt: contains no text"):
        read_pages(tmp_path / "blank.txt")
    tokenizer = word_tokenizer(closes=False)
    tokenizer.eos_token = None
    with pytest.raises(BALoraError, match="neither bos_token nor eos_token"):
        wikitext_perplexity(model, tokenizer, ["a b"], context=8)
