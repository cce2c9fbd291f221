"""The cache: ordinary files, written once, whole or not at all, safe under a race."""

import json
import random
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

import balora.world.build as build
from balora.errors import BALoraError
from balora.world import WorldConfig, build_world, measure_world
from balora.world.language import make_language, make_line, make_tokenizer
from balora.world.pretrain import make_blocks, pretraining_texts


def snapshot(directory):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


def test_a_world_is_ordinary_files(tiny_world):
    tokenizer = AutoTokenizer.from_pretrained(tiny_world.model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_world.model_dir)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.use_cache
    rows = [json.loads(line) for line in tiny_world.train_file.read_text().splitlines()]
    assert len(rows) == 200
    assert all(row.keys() == {"prompt", "completion"} for row in rows)
    assert len(tiny_world.eval_file.read_text().splitlines()) == 50
    assert len(tiny_world.facts_file.read_text().splitlines()) == 6
    generated = model.generate(**tokenizer(["the capital of"], return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] <= 8


def test_the_second_call_writes_nothing_and_trains_nothing(tiny_world, world_cache, monkeypatch):
    before = snapshot(world_cache)
    monkeypatch.setattr(build, "pretrain", lambda *_: pytest.fail("pretrained again"))
    assert build_world(tiny_world.config, world_cache) == tiny_world
    assert snapshot(world_cache) == before


def test_the_pretraining_text_is_what_was_trained_on(tiny_world, world_cache):
    config = replace(tiny_world.config, pretraining_noise=0.3, pretraining_imbalance=8.0)
    language = make_language(config)
    tokenizer = make_tokenizer(language)
    world = build_world(config, world_cache)
    read = [json.loads(line)["text"] for line in world.pretraining_file.read_text().splitlines()]
    blocks = tokenizer.decode(make_blocks(config, language, tokenizer).flatten())
    *documents, _ = (text.replace("<s>", "").strip() for text in blocks.split("</s>"))
    assert read == documents
    assert pretraining_texts(config, language, tokenizer, 7) == documents[:7]
    heldout = [json.loads(line)["text"] for line in world.heldout_file.read_text().splitlines()]
    assert heldout[:5] == [make_line(make_language(tiny_world.config), "heldout", i) for i in range(5)]


def test_a_world_of_an_older_version_gets_its_pretraining_text(tiny_world, world_cache):
    text = tiny_world.pretraining_file.read_bytes()
    tiny_world.pretraining_file.unlink()
    assert build_world(tiny_world.config, world_cache) == tiny_world
    assert tiny_world.pretraining_file.read_bytes() == text
    assert not [path for path in tiny_world.directory.iterdir() if path.name.startswith("tmp")]


def test_worlds_that_differ_in_their_task_share_the_model(tiny_world, world_cache, monkeypatch):
    monkeypatch.setattr(build, "pretrain", lambda *_: pytest.fail("pretrained again"))
    other = build_world(replace(tiny_world.config, label_noise=0.5), world_cache)
    assert other.directory != tiny_world.directory
    weights = "model/model.safetensors"
    assert (other.directory / weights).read_bytes() == (tiny_world.directory / weights).read_bytes()
    assert other.train_file.read_bytes() != tiny_world.train_file.read_bytes()


def test_pretraining_is_deterministic_and_leaves_the_random_state_alone(tiny_world, tmp_path):
    def state():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(7), np.random.seed(7), torch.manual_seed(7)

    seed()
    expected = state()
    seed()
    again = build_world(tiny_world.config, tmp_path)
    assert state() == expected
    for name in ("model/model.safetensors", "train.jsonl", "eval.jsonl", "heldout.jsonl"):
        assert (again.directory / name).read_bytes() == (tiny_world.directory / name).read_bytes(), name


def test_callbacks_see_every_step(tiny_world, tmp_path):
    class Steps(TrainerCallback):
        seen = 0

        def on_step_end(self, args, state, control, **kwargs):
            self.seen = state.global_step

    steps = Steps()
    build_world(replace(tiny_world.config, pretrain_steps=3), tmp_path, [steps])
    assert steps.seen == 3


def test_a_failed_build_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    def half(config, directory, callbacks):
        (directory / "model.safetensors").write_text("half")
        raise RuntimeError("power cut")

    monkeypatch.setattr(build, "pretrain", half)
    with pytest.raises(RuntimeError, match="power cut"):
        build_world(WorldConfig(**tiny), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_builds_agree(tiny, tmp_path, monkeypatch):
    both_are_in = threading.Barrier(2, timeout=20)

    def slow(config, directory, callbacks):
        both_are_in.wait()  # each has found the cache empty
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(build, "pretrain", slow)
    worlds = []
    racers = [threading.Thread(target=lambda: worlds.append(build_world(WorldConfig(**tiny), tmp_path))) for _ in "ab"]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(worlds) == 2
    assert worlds[0] == worlds[1]
    assert (worlds[0].model_dir / "config.json").read_text() == "{}"
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["pretrained", "world"]


def test_the_cache_follows_the_environment(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "pretrain", lambda *_: None)
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "here"))
    assert build_world(WorldConfig(**tiny)).directory.parent == tmp_path / "here"
    monkeypatch.delenv("BALORA_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_world(WorldConfig(**tiny)).directory.parent == tmp_path / ".cache" / "balora"


def test_an_unwritable_cache_raises_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "pretrain", lambda *_: pytest.fail("trained first"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BALoraError, match="BALORA_CACHE"):
        build_world(WorldConfig(**tiny), tmp_path / "file")


def test_trl_trains_on_the_world_s_files(tiny_world, tmp_path):
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        str(tiny_world.model_dir),
        args=SFTConfig(output_dir=str(tmp_path), report_to="none", bf16=False, use_cpu=True),
        train_dataset=load_dataset(
            "json", data_files=str(tiny_world.train_file), split="train", cache_dir=str(tmp_path)
        ),
    )
    first = trainer.train_dataset[0]
    text = trainer.processing_class.decode(first["input_ids"])
    row = json.loads(Path(tiny_world.train_file).read_text().splitlines()[0])
    assert text == f"<s> {row['prompt']}{row['completion']} </s>"
    learnt = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != -100]
    assert trainer.processing_class.decode(learnt) == f"{row['completion'].strip()} </s>"


def test_measures_of_a_tiny_world_are_in_their_ranges(tiny_world):
    model = AutoModelForCausalLM.from_pretrained(tiny_world.model_dir)
    measures = measure_world(model, AutoTokenizer.from_pretrained(tiny_world.model_dir), tiny_world)
    assert measures.keys() == {
        "perplexity",
        "fact_recall",
        "rare_fact_recall",
        "fact_recall_gap",
        "noise_share",
        "attribute_recall",
        "skew",
        "task_accuracy",
        "minority_recall",
    }
    assert 1 < measures["perplexity"] < 2 * model.config.vocab_size
    assert 0 <= measures["skew"] <= 0.5
    assert -1 <= measures.pop("fact_recall_gap") <= 1
    assert all(0 <= measures[name] <= 1 for name in measures if name != "perplexity")
