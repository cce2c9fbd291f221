"""Script that trains cases with `BALoraTrainer` on one or several processes, and writes each step's gradients.

    python many_processes.py DIRECTORY CASES.json

It imports once, and forks the processes of each group before any of them has threads or a process group. A test starts
it with a time limit.
"""

import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.distributed.checkpoint  # otherwise every child process would import it again
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from tiny_models import inputs_for, make, off_its_start
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

import balora
from balora.anchors import Anchors
from balora.errors import BALoraError
from balora.training import BALoraTrainer
from balora.utils.distributed import gather_weight

#: Accelerate allows FSDP on accelerators only; with the check patched, it shards on a CPU too.
FSDP2 = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
#: The same for DeepSpeed, which a group selects by its configuration file.
ZERO = {"ACCELERATE_TORCH_DEVICE": "cpu", "ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
#: Accelerate also shards embeddings separately, and fails if they are part of a module that is not split.
WRAPPED = {"bert": "BertLayer", "llama": "LlamaDecoderLayer"}
ROWS = 8


def copied(tensor):
    return gather_weight(tensor).detach().clone()


class Gradients(TrainerCallback):
    """Records the gradients of all trained parameters before each optimizer step."""

    def __init__(self):
        self.steps = []
        if "ACCELERATE_USE_DEEPSPEED" in os.environ:
            self.read_from_deepspeed()

    def read_from_deepspeed(self):
        """Record gradients under DeepSpeed, which steps before callbacks run."""
        from deepspeed.runtime.engine import DeepSpeedEngine
        from deepspeed.utils import safe_get_full_grad

        step = Gradients.step = getattr(Gradients, "step", DeepSpeedEngine.step)

        def kept(engine, *args, **kwargs):
            named = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
            self.steps.append({name: safe_get_full_grad(p).detach().clone() for name, p in named.items()})
            return step(engine, *args, **kwargs)

        DeepSpeedEngine.step = kept

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if "ACCELERATE_USE_DEEPSPEED" in os.environ:
            return
        named = {name.removeprefix("module."): p for name, p in model.named_parameters() if p.requires_grad}
        self.steps.append({name: copied(p.grad) for name, p in named.items() if p.grad is not None})


def rows_of(name):
    """Build texts of different lengths, so that processes and micro-batches have different token counts."""
    inputs = inputs_for(name, rows=ROWS)
    if name != "bert":
        for row, length in enumerate((8, 12, 5, 11, 12, 9, 4, 12)):
            inputs["attention_mask"][row] = (torch.arange(12) < length).long()
            inputs["labels"][row] = inputs["input_ids"][row].where(torch.arange(12) < length, -100)
            inputs["labels"][row, : row // 2] = -100
    return [{key: value[row] for key, value in inputs.items()} for row in range(ROWS)]


def build(model_name, settings, checkpoint):
    torch.manual_seed(0)
    base = make(model_name)
    if checkpoint is not None:
        model = balora.BALoraModel.from_pretrained(base, checkpoint, is_trainable=True)
    else:
        targets = {"target_modules": "all-linear"} | settings
        model = off_its_start(balora.get_balora_model(base, balora.BALoraConfig(r=4, lora_alpha=8, **targets)))
    if settings.get("anchor_weight"):
        ids = torch.randint(5, 90, (1, 9), generator=torch.Generator().manual_seed(3))
        model.set_anchors(Anchors(ids, torch.ones_like(ids)))  # a single anchor, so that all processes draw the same
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def train(folder, rank, world, model_name, settings, arguments, checkpoint=None):
    """Train a case; `checkpoint` names one to resume from, in another case's folder."""
    unset_hf_deepspeed_config()  # left by the previous case; the base would be loaded sharded
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = WRAPPED[model_name]
    checkpoint = checkpoint and str(folder.parent / checkpoint)
    model = build(model_name, settings, checkpoint)
    gradients = Gradients()
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": "ACCELERATE_USE_DEEPSPEED" not in os.environ,  # or Accelerate leaves DeepSpeed out
            "per_device_train_batch_size": ROWS // 2 // world,
            "gradient_accumulation_steps": 2,
            "max_steps": 2,
            "learning_rate": 0.5,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        | arguments
    )
    trainer = BALoraTrainer(model=model, args=args, train_dataset=rows_of(model_name), callbacks=[gradients])
    trainer.drift_batches = 2
    trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.model
    model.save_pretrained(folder / "adapter", is_main_process=rank == 0)
    return {
        "gradients": gradients.steps,
        "weights": {name: copied(p) for name, p in model.named_parameters() if p.requires_grad},
        "log": [row for row in trainer.state.log_history if "loss" in row],
        "drift": model.drift,
        "fused": getattr(model, "_fused", None),
        "class": type(model).__name__,
    }


def train_with_parallel_head(world, settings):
    """Take a step on the whole batch in each process, with a head whose rows are sharded."""
    model = build("llama", settings, None)
    if world > 1:
        mesh = init_device_mesh("cpu", (world,))
        parallelize_module(model.get_output_embeddings(), mesh, ColwiseParallel(output_layouts=Replicate()))
    inputs = inputs_for("llama")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = model(**inputs).loss
    loss.backward()
    gradients = {name: copied(p.grad) for name, p in model.named_parameters() if p.requires_grad}
    warned = [str(warning.message) for warning in said]
    return {"gradients": [gradients], "log": [{"loss": loss.item()}], "warned": warned}


def refuse_parallel_weights(world):
    """Return the error for a base that was sharded before its adapter was added."""
    base = make("llama")
    plan = {"model.layers.0.mlp.down_proj": RowwiseParallel()}
    parallelize_module(base, init_device_mesh("cpu", (world,)), plan)
    try:
        balora.get_balora_model(base, balora.BALoraConfig(r=4, target_modules=["down_proj"]))
    except BALoraError as error:
        return str(error)
    return ""


def work(directory, group, rank, world, how, cases, environment):
    """Run one process."""
    torch.set_num_threads(1)
    os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    os.environ |= {name: str(world) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    if world > 1:
        # Processes meet at a file instead of a port, which could be in use.
        store = f"file://{directory / group}.store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    else:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            del os.environ[name]
    if how in ("fsdp2", "zero"):
        os.environ |= (FSDP2 if how == "fsdp2" else ZERO) | environment
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    if how == "tp":
        done = {name: train_with_parallel_head(world, *case) for name, case in cases.items()}
        done |= {"refused": refuse_parallel_weights(world)} if world > 1 else {}
    else:
        done = {name: train(directory / f"{group}.{name}", rank, world, *case) for name, case in cases.items()}
    torch.save(done, directory / f"{group}.{rank}.pt")


def prepare_deepspeed():
    """Import DeepSpeed before forking, and use gloo for its reductions, since its own need a compiler."""
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


def main(directory, groups):
    if any(how == "zero" for _, how, *_ in groups.values()):
        prepare_deepspeed()
    for group, (world, how, cases, environment) in groups.items():
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    work(directory, group, rank, world, how, cases, environment)
                    code = 0
                finally:
                    if code:
                        import traceback

                        traceback.print_exc()
                    sys.stderr.flush()
                    # Python's normal exit kills threads that wait for its lock; one inside torch then aborts.
                    os._exit(code)
            children.append(child)
        for _ in children:
            _, status = os.wait()
            if status:
                for child in children:
                    with suppress(ProcessLookupError):
                        os.kill(child, 9)
                sys.exit(f"group {group} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
