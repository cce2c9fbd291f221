import numpy as np
import pytest
import torch
import transformers as hf
from audit_models import TARGETS, adapted, load, texts, tokenizer_of_words
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from balora.audit.layers import FINAL, LAYERS, measure_layers
from balora.audit.models import load_audited
from balora.evaluation import measure_representation_shift
from balora.evaluation.perplexity import padded_batches


def rows_of(own):
    return [{"input_ids": ids} for ids in tokenizer_of_words()(own)["input_ids"]]


@torch.no_grad()
def states_of(model, ids):
    return [layer[0].double().numpy() for layer in model(input_ids=torch.tensor([ids]), output_hidden_states=True)[-1]]


def test_each_layer_is_a_naive_loop_s_and_the_last_the_evaluation_s(folders, tmp_path):
    folder, tuned = adapted(folders["causal"], tmp_path, scale=0.2)
    base, rows = load(folders["causal"]), rows_of(texts(7))
    final, *layers = measure_layers(load_audited(folders["causal"], folder), rows, on="own", batch_size=3)
    windows = [(row["input_ids"], row["input_ids"]) for row in rows]
    expected = measure_representation_shift(tuned, [batch for _, batch in padded_batches(windows, 7)], teacher=base)
    assert final.tuned.value == pytest.approx(expected["representation_shift"], rel=1e-5)
    assert (final.name, final.on, final.units) == (FINAL, "own", 7)
    assert [(f.name, f.on) for f in layers] == [(LAYERS, f"layer {i}") for i in range(3)]
    before, after = ([states_of(model, row["input_ids"]) for row in rows] for model in (base, tuned))
    for i, figure in enumerate(layers):
        old, new = (np.array([text[i].mean(0) for text in side]) for side in (before, after))  # (N, d)
        assert figure.tuned.value == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5, abs=1e-9)
    assert layers[0].tuned.value == 0  # embeddings, which no adapter is on
    assert layers[-1].tuned == final.tuned
    assert layers[1].tuned.value > 0


def test_an_untouched_adapter_moves_no_layer(folders, tmp_path):
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    get_peft_model(load(folders["causal"]), config).save_pretrained(tmp_path)
    audited = load_audited(folders["causal"], str(tmp_path))
    figures = measure_layers(audited, rows_of(texts(5)), on="own", batch_size=2)
    assert [(f.tuned.value, f.tuned.low, f.tuned.high) for f in figures] == [(0, 0, 0)] * 4


def test_of_a_prompt_the_texts_own_tokens_count(folders, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder, tuned = adapted(folders["causal"], tmp_path, config, scale=0.2)
    rows = rows_of(texts(4))
    figure = measure_layers(load_audited(folders["causal"], folder), rows, on="own", batch_size=2)[0]
    base = load(folders["causal"])
    old = np.array([states_of(base, row["input_ids"])[-1].mean(0) for row in rows])
    new = np.array([states_of(tuned, row["input_ids"])[-1][3:].mean(0) for row in rows])
    assert figure.tuned.value == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)


def test_an_encoder_reads_pairs_with_their_segments(folders, tmp_path):
    kind = hf.AutoModelForMaskedLM
    config = LoraConfig(r=4, target_modules=["query", "value"])
    folder, tuned = adapted(folders["masked"], tmp_path, config, kind=kind, scale=0.2)
    audited = load_audited(folders["masked"], folder)
    encoded = audited.tokenizer(texts(3), texts(3, seed=1))
    rows = [{name: values[i] for name, values in encoded.items()} for i in range(3)]
    figure = measure_layers(audited, rows, on="own", batch_size=3)[0]
    models, sides = (load(folders["masked"], kind), tuned), []
    for model in models:
        with torch.no_grad():
            states = [
                model(**{k: torch.tensor([v]) for k, v in row.items()}, output_hidden_states=True) for row in rows
            ]
        sides.append(np.array([output.hidden_states[-1][0].mean(0).double().numpy() for output in states]))
    old, new = sides
    assert figure.tuned.value == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-5)
    alone = measure_layers(audited, [{"input_ids": row["input_ids"]} for row in rows], on="own", batch_size=3)[0]
    assert alone.tuned.value != pytest.approx(figure.tuned.value, rel=1e-6)  # segments do make a difference
