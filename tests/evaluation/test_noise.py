"""Noise in a model's inputs: how much, where, the same for all who read the row; and stability under it."""

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CAUSAL, CLASSIFIERS, T5

from balora import BALoraConfig, get_balora_model
from balora.errors import BALoraError
from balora.evaluation.noise import noisy_inputs, predicted, stability

SPARED = (0, 1)


def embedded(model, ids, kind, level, **settings):
    """What the first layer is given."""
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *a: seen.append((a[1][0], a[2])))
    try:
        with noisy_inputs(model, kind, level, **settings), torch.no_grad():
            hook = model.get_input_embeddings().register_forward_hook(lambda *a: seen.append((a[1][0], a[2])))
            model(input_ids=ids)
            hook.remove()
    finally:
        handle.remove()
    return seen[-1]


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return CAUSAL["llama"]().eval()


def ids_of(rows=64, length=50, seed=0):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=20)
@given(level=st.floats(0, 1))
def test_a_share_of_the_tokens_is_replaced_and_spared_ones_never(llama, level):
    ids = ids_of()
    read, _ = embedded(llama, ids, "token", level, spared=SPARED)
    open_to_it = ~torch.isin(ids, torch.tensor(SPARED))
    assert torch.equal(read[~open_to_it], ids[~open_to_it])
    assert not torch.isin(read[open_to_it], torch.tensor(SPARED)).any()
    share = (read != ids)[open_to_it].float().mean().item()
    assert share == pytest.approx(level * (1 - 1 / 95), abs=0.04)


def test_a_higher_level_changes_the_same_and_more(llama):
    ids = ids_of()
    low, _ = embedded(llama, ids, "token", 0.2, spared=SPARED)
    high, _ = embedded(llama, ids, "token", 0.4, spared=SPARED)
    changed = low != ids
    assert torch.equal(high[changed], low[changed])
    assert (high != ids).sum() > 1.7 * changed.sum()


def test_embeddings_are_shaken_by_their_own_size(llama):
    ids = ids_of()
    _, clean = embedded(llama, ids, "embedding", 0.0)
    _, noisy = embedded(llama, ids, "embedding", 0.3)
    size = llama.get_input_embeddings().weight.square().mean().sqrt().item()
    assert (noisy - clean).std().item() == pytest.approx(0.3 * size, rel=0.02)
    _, spared = embedded(llama, ids, "embedding", 0.3, spared=SPARED)
    untouched = torch.isin(ids, torch.tensor(SPARED))
    assert torch.equal(spared[untouched], clean[untouched])


@pytest.mark.parametrize("kind", ["token", "embedding"])
def test_a_row_s_noise_is_its_own_whatever_stands_beside_it(llama, kind):
    ids = ids_of(rows=3, length=6)
    ids[ids < 2] = 5
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], 1)
    _, together = embedded(llama, ids, kind, 0.5, spared=SPARED)
    _, alone = embedded(llama, padded[[1]], kind, 0.5, spared=SPARED)
    torch.testing.assert_close(together[1], alone[0, :6])
    _, other_seed = embedded(llama, ids, kind, 0.5, spared=SPARED, seed=1)
    assert not torch.equal(together, other_seed)


@pytest.mark.parametrize("kind", ["token", "embedding"])
def test_student_and_teacher_read_the_same_and_nothing_stays(kind):
    torch.manual_seed(0)
    model = get_balora_model(CAUSAL["llama"](), BALoraConfig(method="ba-lora", r=2)).eval()
    ids = ids_of(rows=2, length=8)
    before = model(input_ids=ids).logits
    with noisy_inputs(model, kind, 0.6):
        student, teacher = model(input_ids=ids).logits, model.teacher_forward(input_ids=ids).logits
    torch.testing.assert_close(student, teacher, rtol=1e-4, atol=1e-5)  # an adapter at its start
    assert not torch.allclose(student, before)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_an_encoder_reads_noise_and_its_decoder_does_not():
    torch.manual_seed(0)
    model = hf.T5ForConditionalGeneration(hf.T5Config(**T5)).eval()
    seen = []
    with noisy_inputs(model, "token", 1.0, spared=SPARED):
        readers = [stack.get_input_embeddings() for stack in (model.get_encoder(), model.get_decoder())]
        handles = [module.register_forward_hook(lambda *a: seen.append(a[1][0])) for module in dict.fromkeys(readers)]
        model(input_ids=torch.full((1, 5), 7), decoder_input_ids=torch.full((1, 4), 7))
        for handle in handles:
            handle.remove()
    assert (seen[0] != 7).sum() >= 4
    assert torch.equal(seen[1], torch.full((1, 4), 7))


def test_predictions_at_labelled_places(llama):
    ids = ids_of(rows=2, length=6)
    labels = torch.tensor([[-100, -100, 3, 4, -100, -100], [-100, 5, -100, -100, -100, 2]])
    logits = llama(input_ids=ids).logits
    expected = [logits[0, 1], logits[0, 2], logits[1, 0], logits[1, 4]]
    found = predicted(llama, [{"input_ids": ids, "labels": labels}])
    assert found.tolist() == [int(row.argmax()) for row in expected]
    bert = CLASSIFIERS["bert"]().eval()
    classes = predicted(bert, [{"input_ids": ids, "labels": torch.tensor([0, 2])}])
    assert classes.tolist() == bert(input_ids=ids).logits.argmax(-1).tolist()
    assert stability(np.array([1, 2, 3, 4]), np.array([1, 0, 3, 4])) == 0.75


def test_more_noise_leaves_less_on_a_real_model(model, tokenizer, data_dir):
    import json

    stories = json.loads((data_dir / "tinystories/tinystories_1000.json").read_text())[:4]
    batches = [tokenizer(story, return_tensors="pt", truncation=True, max_length=100) for story in stories]
    batches = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    clean = predicted(model, batches)
    for kind in ("token", "embedding"):
        kept = []
        for level in (0.0, 0.1, 0.4):
            with noisy_inputs(model, kind, level, spared=tokenizer.all_special_ids):
                kept.append(stability(clean, predicted(model, batches)))
        assert kept[0] == 1.0 > kept[1] > kept[2] > 0, kind


@pytest.mark.parametrize(("kind", "level"), [("word", 0.1), ("token", 1.1), ("token", -0.1), ("embedding", -1.0)])
def test_a_wrong_setting_is_named(llama, kind, level):
    with pytest.raises(BALoraError, match="noise:"), noisy_inputs(llama, kind, level):
        pass
