"""Wrong, damaged or hostile folders of adapters and models: one clear error, and none of their code runs."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from bad_inputs import complaint, hold, mutated, mutated_bytes, sized
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_folder import WORDS, tiny

from balora import BALoraConfig, BALoraModel, get_balora_model
from balora.adapters.loading import read_weights
from balora.audit.kinds import kind_of, label_names_of
from balora.audit.models import load_audited
from balora.data import load_sentence_encoder
from balora.evaluation.bias import load_scorer
from balora.recipe import Recipe
from balora.study.prepare import prepare
from balora.study.student import load_student
from balora.training.checkpoints import find_damage, write_manifest

SETTINGS, PEFT, WEIGHTS = "balora_config.json", "adapter_config.json", "adapter_model.safetensors"
METHODS = {
    "lora": {},
    "pissa": {"method": "pissa"},
    "selora": {"method": "selora", "sentence_dim": 4, "gate_hidden": 4},
    "tasks": {"task_names": ["one", "two"]},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """Save the model `tiny` and an adapter of each kind; return the folders."""
    root = tmp_path_factory.mktemp("saved")
    tiny(root / "model")
    for name, settings in METHODS.items():
        config = BALoraConfig(**{"method": "lora+reg", "r": 2, "target_modules": ["q_proj", "v_proj"], **settings})
        get_balora_model(hf.AutoModelForCausalLM.from_pretrained(root / "model"), config).save_pretrained(root / name)
    peft = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(hf.AutoModelForCausalLM.from_pretrained(root / "model"), peft).save_pretrained(root / "peft")
    return {name: root / name for name in ("model", "peft", *METHODS)}


def base(saved: dict[str, Path]) -> hf.PreTrainedModel:
    return hf.AutoModelForCausalLM.from_pretrained(saved["model"])


@sized(few=30, share=0.03)
def test_a_changed_folder_of_an_adapter_is_loaded_or_refused(saved, count, tmp_path):
    model = base(saved)
    folder = tmp_path / "adapter"

    @st.composite
    def folders(draw: st.DrawFn) -> tuple[str, str, bytes]:
        """Draw an adapter kind, one of its files and the changed content."""
        kind = draw(st.sampled_from(["lora", "pissa", "selora", "peft", "tasks"]))
        name = draw(st.sampled_from([PEFT, SETTINGS, WEIGHTS] if kind not in ("peft", "tasks") else [PEFT, WEIGHTS]))
        name = f"one/{name}" if kind == "tasks" else name
        right = (saved[kind] / name).read_bytes()
        if name.endswith(".json") and draw(st.booleans()):
            return kind, name, json.dumps(mutated(json.loads(right), draw, most=2)).encode()
        if name == WEIGHTS and draw(st.booleans()):
            # The header, which says what lies where, is a small part of the bytes.
            end = 8 + int.from_bytes(right[:8], "little")
            return kind, name, mutated_bytes(right[:end], draw) + right[end:]
        return kind, name, mutated_bytes(right, draw)

    def check(given: tuple[str, str, bytes]) -> str:
        kind, name, content = given
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved[kind], folder)
        (folder / name).write_bytes(content)
        fresh = hf.AutoModelForCausalLM.from_pretrained(saved["model"])
        if kind == "peft":
            said = complaint(lambda: load_audited(str(saved["model"]), str(folder)), folder, "adapter")
        else:
            names = (folder, SETTINGS, *vars(BALoraConfig()), "task_names")
            said = complaint(lambda: BALoraModel.from_pretrained(fresh, folder), *names)
        assert (folder / name).read_bytes() == content
        return "loaded" if said is None else "refused"

    tally = hold(count, folders(), check)
    assert 0 < tally["loaded"] < tally.total()
    assert model.training is False


class TestAdapters:
    """Adapters of another model or shape, incomplete, or with code."""

    def refused(self, saved, folder, *names: object) -> str:
        said = complaint(lambda: BALoraModel.from_pretrained(base(saved), folder), folder, *names)
        assert said is not None
        return said

    def copy(self, saved, kind: str, tmp_path: Path) -> Path:
        return Path(shutil.copytree(saved[kind], tmp_path / kind))

    @pytest.mark.parametrize(
        "shape",
        [{"hidden_size": 32}, {"num_hidden_layers": 4}, {"num_hidden_layers": 1}, {"num_key_value_heads": 1}],
        ids=lambda shape: next(iter(shape)) + str(next(iter(shape.values()))),
    )
    @pytest.mark.parametrize("kind", ["lora", "pissa"])
    def test_of_another_shape_are_refused(self, saved, kind, shape, tmp_path):
        other = hf.LlamaForCausalLM(hf.LlamaConfig(**{**base(saved).config.to_dict(), **shape, "head_dim": None}))
        said = complaint(lambda: BALoraModel.from_pretrained(other, saved[kind]), saved[kind])
        assert "does not fit LlamaForCausalLM" in said

    def test_of_another_architecture_are_refused(self, saved):
        other = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=len(WORDS)))
        assert complaint(lambda: BALoraModel.from_pretrained(other, saved["lora"]), saved["lora"], "target_modules")

    @pytest.mark.parametrize("kind", ["lora", "pissa", "selora"])
    def test_without_one_tensor_are_refused(self, saved, kind, tmp_path):
        folder = self.copy(saved, kind, tmp_path)
        state = load_file(folder / WEIGHTS)
        lost = next(key for key in state if "lora_B" in key)
        del state[lost]
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        said = self.refused(saved, folder)
        assert "does not fit LlamaForCausalLM" in said
        assert lost.removesuffix("weight") in said

    def test_with_an_extra_tensor_are_refused(self, saved, tmp_path):
        folder = self.copy(saved, "lora", tmp_path)
        state = load_file(folder / WEIGHTS)
        key = next(iter(state)).replace("layers.0", "layers.7")
        save_file({**state, key: torch.zeros(2, 2)}, folder / WEIGHTS, metadata={"format": "pt"})
        assert "layers.7" in self.refused(saved, folder)

    @pytest.mark.parametrize("rank", [10**12, 0, -1, "2", None, [2]])
    def test_whose_rank_differs_from_their_weights_are_refused(self, saved, rank, tmp_path):
        folder = self.copy(saved, "lora", tmp_path)
        config = json.loads((folder / PEFT).read_text())
        (folder / PEFT).write_text(json.dumps({**config, "r": rank}))
        self.refused(saved, folder)

    def test_that_name_a_module_to_import_are_refused(self, saved, tmp_path):
        folder = self.copy(saved, "lora", tmp_path)
        config = json.loads((folder / PEFT).read_text())
        (folder / PEFT).write_text(json.dumps({**config, "megatron_config": {"a": 1}, "megatron_core": "this"}))
        assert "megatron_config" in self.refused(saved, folder)

    def test_whose_task_folders_lie_elsewhere_are_refused(self, saved, tmp_path):
        folder = self.copy(saved, "tasks", tmp_path)
        settings = json.loads((folder / SETTINGS).read_text())
        for names in (["../lora", "two"], ["/etc", "two"], ["..", "two"], "one", {"one": 1}, [1, 2]):
            (folder / SETTINGS).write_text(json.dumps({**settings, "task_names": names}))
            self.refused(saved, folder, "task_names")

    def test_stored_as_a_pickle_are_refused(self, saved, tmp_path):
        folder = self.copy(saved, "lora", tmp_path)
        (folder / WEIGHTS).unlink()
        ran = tmp_path / "ran"
        (folder / "adapter_model.bin").write_bytes(Evil(ran).pickled())
        assert "is a pickle" in self.refused(saved, folder)
        # Asked for by name, tensors alone are read.
        said = complaint(lambda: read_weights(folder, "cpu", use_safetensors=False), folder)
        assert "cannot be read" in said
        torch.save({"a": torch.ones(2)}, folder / "adapter_model.bin")
        assert read_weights(folder, "cpu", use_safetensors=False)["a"].tolist() == [1, 1]
        assert not ran.exists()


class Evil:
    """A pickle that creates a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)

    def pickled(self) -> bytes:
        return pickle.dumps({"weight": self})


CODE = """
import pathlib
pathlib.Path({trace!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class C(LlamaConfig):
    model_type = "novel"
class M(LlamaForCausalLM):
    config_class = C
"""


class TestModels:
    """Model folders with code, pickles or damage."""

    def folder(self, saved, tmp_path: Path) -> Path:
        return Path(shutil.copytree(saved["model"], tmp_path / "model"))

    def said(self, folder: Path, **settings: Any) -> list[str | None]:
        """Return each model loader's error about this folder, `None` where it loads."""
        rows = folder.parent / "rows.jsonl"
        rows.write_text('{"text": "the cat sat"}\n')
        recipe = Recipe(
            model_name_or_path=str(folder), train_file=str(rows), training_arguments={"use_cpu": True}, **settings
        )
        actions = {
            "train": lambda: (prepare(recipe).empty_model(), prepare(recipe).load_model()),
            "audit": lambda: (kind_of(str(folder), None), load_audited(str(folder), None, **settings)),
        }
        if not settings:
            actions |= {
                "encoder": lambda: load_sentence_encoder(str(folder)),
                "scorer": lambda: load_scorer(f"transformers:{folder}", batch_size=1),
            }
        return [complaint(action, folder, "model: ") for action in actions.values()]

    def test_with_their_own_code_are_refused(self, saved, tmp_path, monkeypatch):
        folder, ran = self.folder(saved, tmp_path), tmp_path / "ran"
        (folder / "novel.py").write_text(CODE.format(trace=str(ran)))
        own = {"AutoConfig": "novel.C", "AutoModel": "novel.M", "AutoModelForCausalLM": "novel.M"}
        own["AutoModelForSequenceClassification"] = "novel.M"
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "novel", "auto_map": own}))
        # Transformers would ask on the terminal whether to trust the code; balora must not.
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
        for said in self.said(folder):
            assert "remote code" in said
        assert not ran.exists()

    def test_with_code_beside_a_known_architecture_never_run_it(self, saved, tmp_path):
        folder, ran = self.folder(saved, tmp_path), tmp_path / "ran"
        (folder / "novel.py").write_text(CODE.format(trace=str(ran)))
        config = json.loads((folder / "config.json").read_text())
        own = {"AutoConfig": "novel.C", "AutoModelForCausalLM": "novel.M"}
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": own}))
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        own = {"AutoTokenizer": [None, "novel.T"]}
        (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "auto_map": own}))
        self.said(folder)
        assert not ran.exists()

    def test_stored_as_pickles_are_refused(self, saved, tmp_path):
        folder, ran = self.folder(saved, tmp_path), tmp_path / "ran"
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
        for said in self.said(folder):
            assert "is a pickle" in said
        assert self.said(folder, use_safetensors=False) == [None, None]
        (folder / "pytorch_model.bin").write_bytes(Evil(ran).pickled())
        assert all(self.said(folder, use_safetensors=False))
        assert not ran.exists()

    @sized(few=6, share=0.01)
    def test_with_a_changed_file_are_loaded_or_refused(self, saved, count, tmp_path):
        folder = self.folder(saved, tmp_path)
        right = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", "model.safetensors")}

        @st.composite
        def changes(draw: st.DrawFn) -> tuple[str, bytes]:
            name = draw(st.sampled_from(list(right)))
            if name == "config.json":
                # A width that is huge is a model that is huge: it is its user's to know.
                known = {
                    k: v for k, v in json.loads(right[name]).items() if not k.endswith(("size", "heads", "layers"))
                }
                return name, json.dumps({**json.loads(right[name]), **_objects(mutated(known, draw, most=1))}).encode()
            return name, mutated_bytes(right[name], draw)

        def check(change: tuple[str, bytes]) -> str:
            name, content = change
            for other, bytes_there in right.items():
                (folder / other).write_bytes(content if other == name else bytes_there)
            return "loaded" if self.said(folder, use_safetensors=True) == [None, None] else "refused"

        tally = hold(count, changes(), check)
        assert tally["refused"] > 0


def _objects(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def test_a_peft_adapter_is_measured_only_with_the_model_that_it_fits(saved, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the cat sat"}\n')
    recipe = Recipe(model_name_or_path=str(saved["model"]), train_file=str(rows), training_arguments={"use_cpu": True})
    prepared = prepare(recipe)
    load_student(prepared, str(saved["peft"]))
    folder = Path(shutil.copytree(saved["peft"], tmp_path / "peft"))
    state = load_file(folder / WEIGHTS)
    renamed = {key.replace("layers.1", "layers.5"): tensor for key, tensor in state.items()}
    for wrong in (renamed, {key: torch.cat([t, t], -1) for key, t in state.items()}, {}):
        save_file(wrong, folder / WEIGHTS, metadata={"format": "pt"})
        assert complaint(lambda: load_student(prepared, str(folder)), folder)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "adapter_model.bin")
    assert "is a pickle" in complaint(lambda: load_student(prepared, str(folder)), folder)


def test_a_classifier_s_adapter_with_damaged_weights_is_named(saved, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    model = hf.AutoModelForSequenceClassification.from_pretrained(saved["model"], num_labels=3)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / WEIGHTS).write_bytes(b"\0" * 40)
    said = complaint(lambda: label_names_of(str(saved["model"]), str(tmp_path / "adapter")), tmp_path / "adapter")
    assert "cannot be read" in said


@sized(few=60, share=0.03)
def test_a_checkpoint_with_a_changed_manifest_is_damaged_or_whole(count, tmp_path):
    for name in ("a.bin", "b/c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path)
    manifest = tmp_path / "balora_manifest.json"
    right = manifest.read_bytes()

    @st.composite
    def manifests(draw: st.DrawFn) -> bytes:
        if draw(st.booleans()):
            return json.dumps(mutated(json.loads(right), draw)).encode()
        return mutated_bytes(right, draw)

    def check(content: bytes) -> str:
        manifest.write_bytes(content)
        damage = find_damage(tmp_path)
        assert damage is None or isinstance(damage, str)
        return "whole" if damage is None else "damaged"

    tally = hold(count, manifests(), check)
    assert 0 < tally["damaged"] < tally.total()
