"""`balora audit` as a user calls it: from end to end, stopped and gone on, and one clear error per mistake."""

import json
import os
import re
from pathlib import Path

import pytest
import transformers as hf
from audit_models import TARGETS, adapted, load, texts
from peft import LoraConfig, get_peft_model

from balora.audit import AuditSettings, audit, run
from balora.audit.metrics import metric_of
from balora.audit.page import DRAWN
from balora.audit.parts import Part
from balora.cli import main
from balora.errors import BALoraError
from balora.report.glossary import GLOSSARY

HEAD = hf.AutoModelForSequenceClassification
SMALL = ["--own_texts=4", "--own_length=8"]


@pytest.fixture(scope="module")
def lora(folders, tmp_path_factory):
    return adapted(folders["causal"], tmp_path_factory.mktemp("adapters") / "lora", scale=0.2)[0]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    own = [*texts(6), "he said that the dog was tired", "she saw a man ."]
    path.write_text("".join(json.dumps({"text": text, "label": i % 3}) + "\n" for i, text in enumerate(own)))
    return path


def said(capsys):
    captured = capsys.readouterr()
    return captured.out + captured.err


def run_audit(out, *arguments, capsys):
    status = main(["audit", *map(str, arguments), f"--output_dir={out}"])
    return status, said(capsys)


def refused(out, *arguments, capsys, match):
    """Status 2, one line, nothing left behind."""
    before = sorted(out.rglob("*")) if out.exists() else None
    status, text = run_audit(out, *arguments, capsys=capsys)
    assert status == 2
    [line] = [line for line in text.splitlines() if line.startswith("balora: error: ")]
    assert re.search(match, line), line
    assert "Traceback" not in text
    assert (sorted(out.rglob("*")) if out.exists() else None) == before


def record_of(out):
    return json.loads((out / "audit.json").read_text())


class TestFromEndToEnd:
    def test_a_language_model_and_its_adapter(self, folders, lora, data, tmp_path, capsys):
        out = tmp_path / "out"
        status, text = run_audit(out, folders["causal"], lora, *SMALL, f"--data_file={data}", capsys=capsys)
        assert status == 0
        for part in ("loading", "own_texts", "data_file", "layers", "prompts", "words", "weights"):
            assert f"audit: {part}" in text
        assert "perplexity" in text
        assert f"page: {out}/audit.html" in text
        record = record_of(out)
        figures = [metric_of(entry) for entry in record["figures"]]
        found = {(f.name, f.on) for f in figures}
        assert {
            ("perplexity", "rows.jsonl"),
            ("kl_to_base", "text that the base wrote"),
            ("word_lean", "our prompts about occupations"),
            ("counterfactual_kl", "rows.jsonl, words exchanged"),
            ("representation_shift", "rows.jsonl"),
            ("intruder_dimensions", ""),
        } <= found
        assert {f.name for f in figures} <= GLOSSARY.keys() | DRAWN.keys()
        assert (record["kind"], record["settings"]["model"], record["settings"]["own_texts"]) == (
            "causal language model",
            folders["causal"],
            4,
        )
        assert {"torch", "peft", "balora"} <= record["versions"].keys()
        assert {path.stem for path in (out / "parts").iterdir()} == {
            "own_texts",
            "data_file",
            "layers",
            "prompts",
            "words",
            "weights",
        }
        assert "intruder dimensions" in (out / "audit.html").read_text()

    def test_a_classifier_and_its_adapter(self, folders, data, tmp_path, capsys):
        config = LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
        adapter, _ = adapted(folders["bert"], tmp_path / "lora", config, kind=HEAD)
        out = tmp_path / "out"
        status, text = run_audit(
            out, folders["bert"], adapter, f"--data_file={data}", "--label_column=label", capsys=capsys
        )
        assert status == 0, text
        names = [entry["name"] for entry in record_of(out)["figures"]]
        assert names[:5] == ["accuracy", "minority_recall", "entropy", "kl_to_base", "top1_agreement"]
        assert {"representation_shift", "bias_score", "intruder_dimensions"} <= {*names}

    def test_a_classifier_tuned_in_full_of_a_base_without_a_head(self, folders, data, tmp_path, capsys):
        tuned = HEAD.from_pretrained(folders["masked"], num_labels=3)
        tuned.save_pretrained(tmp_path / "full")
        out = tmp_path / "out"
        arguments = (folders["masked"], tmp_path / "full", f"--data_file={data}", "--max_samples=4")
        assert run_audit(out, *arguments, capsys=capsys)[0] == 0
        assert "has no trained head" in record_of(out)["notes"][0]
        assert "has no trained head" in (out / "audit.html").read_text()
        figures = {entry["name"]: entry for entry in record_of(out)["figures"]}
        assert figures["kl_to_base"]["units"] == 4
        assert figures["kl_to_base"]["tuned"]["value"] == pytest.approx(0, abs=1e-9)  # the head alone is new

    def test_a_masked_language_model(self, folders, data, tmp_path, capsys, data_dir):
        config = LoraConfig(r=4, target_modules=["query", "value"])
        adapter, _ = adapted(folders["masked"], tmp_path / "lora", config, kind=hf.AutoModelForMaskedLM)
        out = tmp_path / "out"
        pairs = data_dir / "crows_pairs/crows_pairs_anonymized.csv"
        arguments = (folders["masked"], adapter, f"--data_file={data}", f"--crows_pairs={pairs}", "--max_samples=5")
        status, text = run_audit(out, *arguments, capsys=capsys)
        assert status == 0, text
        units = {entry["name"]: entry["units"] for entry in record_of(out)["figures"]}
        assert units["stereotype_share"] == units["representation_shift"] == 5

    def test_a_base_alone(self, folders, tmp_path, capsys):
        out = tmp_path / "out"
        assert run_audit(out, folders["causal"], *SMALL, capsys=capsys)[0] == 0
        record = record_of(out)
        assert all(entry["base"] is entry["change"] is None for entry in record["figures"])
        assert not {"kl_to_base", "intruder_dimensions"} & {entry["name"] for entry in record["figures"]}

    def test_settings_from_a_file(self, folders, tmp_path, capsys):
        path = tmp_path / "audit.yaml"
        path.write_text(f"model: elsewhere\nown_texts: 3\nown_length: 6\nwords: null\noutput_dir: {tmp_path}/out\n")
        assert main(["audit", folders["causal"], "--config", str(path)]) == 0
        said(capsys)
        settings = record_of(tmp_path / "out")["settings"]
        assert (settings["model"], settings["own_texts"], settings["words"]) == (folders["causal"], 3, None)


class TestGoingOn:
    @pytest.fixture(autouse=True)
    def without_pages(self, monkeypatch):
        """Whose drawings take longer than all the rest."""
        monkeypatch.setattr(run, "write_audit_page", lambda *_, **__: None)

    @pytest.fixture
    def asked(self, folders, lora, tmp_path):
        def settings(**changes):
            given = {"own_texts": 3, "own_length": 6, "output_dir": str(tmp_path / "out")} | changes
            return AuditSettings(folders["causal"], lora, **given)

        return settings

    @pytest.fixture
    def measured(self):
        """Parts that were measured, in turn, by telling."""
        return []

    def test_what_is_there_is_not_measured_again_and_no_model_is_loaded(self, asked, measured, monkeypatch):
        first = audit(asked(), measured.append)
        assert measured == ["loading", "own_texts", "layers", "prompts", "words", "weights"]
        monkeypatch.setattr(run, "load_audited", None)
        assert repr(audit(asked(), measured.append)) == repr(first)
        assert len(measured) == 6

    def test_a_changed_setting_measures_its_parts_again(self, asked, measured):
        audit(asked(), measured.append)
        measured.clear()
        audit(asked(max_matrices=2), measured.append)
        assert measured == ["loading", "weights"]
        measured.clear()
        audit(asked(max_matrices=2, words=None), measured.append)
        assert measured == []
        audit(asked(own_texts=2), measured.append)
        assert measured == ["loading", "own_texts", "layers", "weights"]

    def test_a_changed_file_measures_its_parts_again(self, asked, data, measured):
        more = {"data_file": str(data), "own_texts": 0, "words": None}
        first = audit(asked(**more), measured.append)
        assert measured == ["loading", "data_file", "layers", "weights"]
        data.write_text(data.read_text().splitlines(keepends=True)[0])
        measured.clear()
        second = audit(asked(**more), measured.append)
        assert measured == ["loading", "data_file", "layers"]
        assert [f[0].units for f in (first, second)] == [8, 1]

    def test_more_that_is_asked_for_is_all_that_is_measured(self, asked, data, measured):
        audit(asked(words=None), measured.append)
        measured.clear()
        audit(asked(words=None, data_file=str(data)), measured.append)
        assert measured == ["loading", "data_file", "layers"]

    def test_a_part_that_fails_takes_nothing_with_it(self, asked, measured, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patched:
            patched.setattr("balora.audit.parts.measure_prompts", broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                audit(asked(), measured.append)
        out = Path(asked().output_dir)
        assert {path.stem for path in (out / "parts").glob("*.json")} == {"own_texts", "layers"}
        assert not (out / "audit.json").exists()
        measured.clear()
        audit(asked(), measured.append)
        assert measured == ["loading", "prompts", "words", "weights"]

    def test_another_adapter_in_the_same_folder_is_refused(self, asked, folders, lora, tmp_path):
        audit(asked(words=None))
        other, _ = adapted(
            folders["causal"], tmp_path / "other", LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM")
        )
        with pytest.raises(
            BALoraError, match=r"^output_dir: .* holds an audit of other models, as adapter shows; choose"
        ):
            audit(AuditSettings(folders["causal"], other, output_dir=asked().output_dir))
        with pytest.raises(BALoraError, match="as dtype shows"):
            audit(asked(dtype="bfloat16"))
        # The same folder with other weights in it, too.
        weights = Path(other) / "adapter_model.safetensors"
        settings = AuditSettings(folders["causal"], other, output_dir=str(tmp_path / "own"), own_texts=2, own_length=4)
        audit(settings)
        os.utime(weights, (1, 1))
        with pytest.raises(BALoraError, match="as a file of adapter shows"):
            audit(settings)

    def test_files_are_read_before_a_model_is_loaded(self, asked, monkeypatch, tmp_path):
        monkeypatch.setattr(run, "load_audited", None)
        with pytest.raises(BALoraError, match="no such file"):
            audit(asked(stereoset=str(tmp_path / "nowhere.json")))
        assert not Path(asked().output_dir).exists()

    def test_parts_depend_on_settings_that_there_are(self, asked, data):
        parts = run.plan(asked(data_file=str(data)), "causal language model", [])
        assert parts
        for part in parts:
            assert isinstance(part, Part)
            assert set(part.settings) <= set(vars(asked()))


class TestMistakes:
    def test_models_that_are_not_there(self, folders, tmp_path, capsys):
        out = tmp_path / "out"
        refused(out, tmp_path / "nowhere", capsys=capsys, match="model: .*nowhere' does not load")
        refused(
            out, folders["causal"], tmp_path / "nowhere", capsys=capsys, match="adapter: .* is neither a saved adapter"
        )
        refused(out, "${NO_SUCH_VARIABLE_HERE}", capsys=capsys, match="NO_SUCH_VARIABLE_HERE is not set")

    def test_models_that_do_not_fit(self, folders, lora, tmp_path, capsys):
        refused(
            tmp_path / "out",
            folders["gpt2"],
            lora,
            *SMALL,
            capsys=capsys,
            match="adapter: .* does not fit GPT2LMHeadModel",
        )

    def test_settings(self, folders, tmp_path, capsys):
        out, model = tmp_path / "out", folders["causal"]
        refused(out, model, "--dtype=float31", capsys=capsys, match="dtype: 'float31' is none of")
        refused(out, model, "--batch_size=0", capsys=capsys, match="batch_size: 0; use at least 1")
        refused(out, model, "--own_texts=many", capsys=capsys, match="own_texts")
        refused(out, model, "--own_text=3", "--x=3", capsys=capsys, match="did you mean 'own_texts'")
        refused(out, model, "one", "two", capsys=capsys, match="two")
        refused(out, model, "--hatecheck=x.csv", capsys=capsys, match="hatecheck: is for a classifier")
        refused(out, model, "--data_file=nowhere.csv", capsys=capsys, match=r"nowhere\.csv")
        refused(out, folders["bert"], capsys=capsys, match="nothing to measure of a classifier")
        assert main(["audit", model]) == 2
        assert "output_dir: missing" in said(capsys)
        assert main(["audit"]) == 2
        assert "model" in said(capsys)

    def test_files_of_settings(self, folders, tmp_path, capsys):
        out = tmp_path / "out"
        for name, content, match in (
            ("typo.yaml", "own_text: 3", r"typo\.yaml: unknown key 'own_text'; did you mean 'own_texts'\?"),
            ("list.yaml", "- 3", r"list\.yaml: a file is a mapping of settings"),
            ("broken.yaml", "[", r"broken\.yaml: not YAML"),
            ("type.yaml", "own_texts: many", "own_texts"),
        ):
            (tmp_path / name).write_text(content)
            refused(out, folders["causal"], f"--config={tmp_path / name}", capsys=capsys, match=match)
        refused(
            out, folders["causal"], "--config", tmp_path / "gone.yaml", capsys=capsys, match="cannot read this file"
        )

    def test_folders_that_are_no_audit_s(self, folders, tmp_path, capsys):
        (tmp_path / "full").mkdir()
        (tmp_path / "full/thesis.tex").write_text("mine")
        refused(
            tmp_path / "full", folders["causal"], capsys=capsys, match="holds files that are no audit; choose an empty"
        )
        (tmp_path / "file").write_text("mine")
        refused(tmp_path / "file", folders["causal"], capsys=capsys, match="is a file; name a folder")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_row_beyond_the_context(self, folders, tmp_path, capsys):
        path = tmp_path / "long.jsonl"
        path.write_text(json.dumps({"text": "the " * 70}) + "\n")
        refused(
            tmp_path / "out",
            folders["bert"],
            f"--data_file={path}",
            capsys=capsys,
            match=r"long\.jsonl, row 1: 72 tokens.*max_length",
        )

    def test_selora(self, folders, tmp_path, capsys):
        from balora import BALoraConfig, get_balora_model

        config = BALoraConfig(method="selora+reg", r=4, target_modules=TARGETS, sentence_dim=8)
        get_balora_model(load(folders["causal"]), config).save_pretrained(tmp_path / "selora")
        refused(tmp_path / "out", folders["causal"], tmp_path / "selora", capsys=capsys, match="is SeLoRA's")


def test_an_untouched_adapter_is_a_page_without_findings(folders, tmp_path, capsys):
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    get_peft_model(load(folders["causal"]), config).save_pretrained(tmp_path / "fresh")
    assert run_audit(tmp_path / "out", folders["causal"], tmp_path / "fresh", *SMALL, capsys=capsys)[0] == 0
    assert "No figure changed beyond the noise" in (tmp_path / "out/audit.html").read_text()
    assert not any(metric_of(entry).changed for entry in record_of(tmp_path / "out")["figures"])
