"""Memory and time of a training step by formula: 7B and 70B on 1, 8 and 64 devices; and a small one to check it by.

    python benchmarks/scale_on_paper.py            # the table of docs/scale.md
    python benchmarks/scale_on_paper.py --check    # a small Llama on this machine: bytes by formula, bytes counted

Nothing of the table was measured. The formulas, with their symbols, are in docs/scale.md.
"""

import argparse
from dataclasses import dataclass

#: What the table assumes of a device and of what connects them.
MEMORY = 80e9  # bytes
RATE = 989e12 * 0.4  # bf16 operations a second that matrix products reach
NVLINK, NETWORK = 300e9, 40e9  # bytes a second and device, within a machine and between machines
PER_MACHINE = 8
#: Logits of one chunk of the fused head on a GPU, and its fewest rows (`balora.fused.chunks`).
CHUNK, FEWEST_ROWS = 2**26, 256


@dataclass(frozen=True)
class Model:
    """A Llama: depth, widths, and the adapter on its seven matrices a layer."""

    layers: int
    d: int
    ff: int
    d_kv: int
    vocabulary: int
    r: int

    @property
    def layer(self) -> int:
        """Weights of one layer's matrices."""
        return 2 * self.d * self.d + 2 * self.d * self.d_kv + 3 * self.d * self.ff

    @property
    def body(self) -> int:
        """Weights of all of them."""
        return self.layers * self.layer

    @property
    def weights(self) -> int:
        """N: all, embeddings and head included."""
        return self.body + 2 * self.vocabulary * self.d

    @property
    def adapter(self) -> int:
        """P: Σ r·(in + out)."""
        d, ff, kv = self.d, self.ff, self.d_kv
        return self.layers * self.r * (2 * (d + d) + 2 * (d + kv) + 3 * (d + ff))


@dataclass(frozen=True)
class Step:
    """What one device does in a step, in bytes of b for weights and activations."""

    rows: int
    length: int
    sample_rate: float = 1.0
    checkpointing: bool = False
    bytes_each: int = 2
    chunk: int = CHUNK

    @property
    def tokens(self) -> int:
        """T."""
        return self.rows * self.length


def layer_activations(model: Model, step: Step) -> float:
    """Bytes that one layer keeps for its backward, by token.

    In full precision the layers are lean: two norms' inputs and outputs 4d, q and the attention's output 2d, k and v
    2d_kv, the MLP's 4ff, the adapters' 7r. Under autocast a norm keeps its input in four bytes, and each of the five
    matrices that read one its own copy, as the output projection does.
    """
    d, kv, ff, r = model.d, model.d_kv, model.ff, model.r
    if step.bytes_each == 4:
        return 4 * (4 * d + 2 * d + 2 * kv + 4 * ff + 7 * r)
    return 2 * (4 * d + 5 * d + 3 * d + 2 * kv + 4 * ff + 7 * r)


def activations(model: Model, step: Step) -> float:
    """Of the whole body: every layer's, or with checkpointing every layer's input and one layer's."""
    own = layer_activations(model, step)
    if step.checkpointing:
        return step.tokens * (model.layers * step.bytes_each * model.d + own)
    return step.tokens * model.layers * own


def head(model: Model, step: Step) -> float:
    """The fused pass: two chunks of logits, four of T × d at b bytes and two at four, and G."""
    rows = min(max(step.chunk // model.vocabulary, FEWEST_ROWS), step.tokens)
    vectors = step.tokens * model.d * (4 * step.bytes_each + 2 * 4)
    return 2 * rows * model.vocabulary * step.bytes_each + vectors + 4 * model.d**2


def adapter_states(model: Model, teacher: bool = True) -> float:
    """Weights, gradient and two moments in four bytes each, and a residual method's frozen start."""
    return (16 + 4 * teacher) * model.adapter


@dataclass(frozen=True)
class Bytes:
    """Of one device, by what they are for."""

    weights: float
    adapter: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        """The peak, at the head's pass or in a layer's backward."""
        return self.weights + self.adapter + self.activations + self.head


def memory(model: Model, step: Step, shards: int) -> Bytes:
    """Bytes of one device.

    Args:
        model: Its sizes.
        step: Of one device.
        shards: F, devices that the weights are spread over; 1 where each has them whole.
    """
    b = step.bytes_each
    weights = b * model.weights / shards
    if shards > 1:
        # Two layers that are gathered, one in use and one on its way, and embeddings and head.
        weights += b * (2 * model.layer + 2 * model.vocabulary * model.d)
    return Bytes(weights, adapter_states(model) / shards, activations(model, step), head(model, step))


def seconds(model: Model, step: Step, devices: int, shards: int) -> tuple[float, float]:
    """Of arithmetic, and of what is sent, which runs beside it.

    Args:
        model: Its sizes.
        step: Of one device.
        devices: W.
        shards: F, as in `memory`; the copies are W/F.
    """
    passes = 2 + step.checkpointing + step.sample_rate  # forward, gradient of the inputs, again, the teacher
    attention = 2 * step.length * model.d * model.layers  # products with keys and values, half of them masked
    body = 2 * model.body + attention
    adapter = 2 * model.adapter * (3 + step.checkpointing + step.sample_rate)
    vocabulary = 2 * model.vocabulary * model.d * (2 + step.sample_rate)
    operations = step.tokens * (passes * body + adapter + vocabulary)
    sent = 0.0
    if shards > 1:  # gathered for the teacher, forward and backward; the adapter's gradient summed in parts
        gathered = (2 + (step.sample_rate > 0)) * step.bytes_each * model.weights
        sent += (1 - 1 / shards) * (gathered + 4 * model.adapter) / (NVLINK if shards <= PER_MACHINE else NETWORK)
    copies = devices // shards
    if copies > 1:  # each part summed over the copies
        sent += (1 - 1 / copies) * 2 * 4 * model.adapter / shards / (NVLINK if devices <= PER_MACHINE else NETWORK)
    return operations / RATE, sent


LLAMA_7B = Model(32, 4096, 11008, 4096, 32000, 128)
LLAMA_70B = Model(80, 8192, 28672, 1024, 32000, 64)
#: Model, step of one device, and devices with those that the weights are spread over.
ROWS = (
    ("7B", LLAMA_7B, Step(4, 512), ((1, 1), (8, 1), (64, 1))),
    ("7B", LLAMA_7B, Step(4, 512, checkpointing=True), ((1, 1), (8, 1), (64, 1), (8, 8), (64, 8), (64, 64))),
    ("70B", LLAMA_70B, Step(1, 512, checkpointing=True), ((1, 1), (8, 8), (64, 8), (64, 64))),
    ("70B", LLAMA_70B, Step(1, 512, 0.25, checkpointing=True), ((8, 8), (64, 8), (64, 64))),
    ("70B", LLAMA_70B, Step(8, 512, 0.25, checkpointing=True), ((8, 8), (64, 8), (64, 64))),
)


def table() -> None:
    """One row for each model, way and number of devices."""
    print(
        "| model | devices | spread over | rows | teacher | checkpointed | weights | adapter | activations | head "
        "| GB | compute (s) | sent (s) | rows/s |"
    )
    print("|---|---:|---:|---:|---:|---|" + "---:|" * 8)
    for name, model, step, counts in ROWS:
        for devices, shards in counts:
            held = memory(model, step, shards)
            compute, sent = seconds(model, step, devices, shards)
            parts = " | ".join(
                f"{part / 1e9:.1f}" for part in (held.weights, held.adapter, held.activations, held.head)
            )
            fits = held.total <= MEMORY
            speed = f"{devices * step.rows / max(compute, sent):.0f}"
            times = f"{compute:.2f} | {sent:.2f} | {speed}" if fits else "does not fit | |"
            print(
                f"| {name} | {devices} | {shards} | {step.rows} | {step.sample_rate:g} | "
                f"{'yes' if step.checkpointing else 'no'} | {parts} | {held.total / 1e9:.1f} | {times} |"
            )


def check() -> None:
    """What a small Llama keeps for its backward and holds at most, counted, beside the formulas."""
    import torch
    from contenders import Shape
    from live_bytes import counted

    from balora.fused.chunks import CHUNK_ELEMENTS

    print("| precision | checkpointed | | formula (MB) | counted (MB) | ratio |\n|---|---|---|---:|---:|---:|")
    for dtype, checkpointing in ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True)):
        shape = Shape(256, 4, 8000, 4, 256, 16, 688, dtype=dtype)
        sizes = Model(shape.layers, shape.d, shape.intermediate, shape.d, shape.vocabulary, shape.r)
        each = 4 if dtype == torch.float32 else 2
        paper = Step(shape.batch, shape.length, 1.0, checkpointing, each, CHUNK_ELEMENTS["cpu"])
        kept = activations(sizes, paper)
        if checkpointing:  # the one layer that is run again is not kept but made
            kept -= paper.tokens * layer_activations(sizes, paper)
        # The last norm's input, what the head reads, its gradient; G.
        kept += 3 * each * paper.tokens * sizes.d + 4 * sizes.d**2
        formulas = {"kept for the backward": kept, "peak": memory(sizes, paper, 1).total}
        for (name, formula), found in zip(formulas.items(), counted(shape, checkpointing), strict=True):
            print(
                f"| {str(dtype).removeprefix('torch.')} | {'yes' if checkpointing else 'no'} | {name} | "
                f"{formula / 1e6:.1f} | {found / 1e6:.1f} | {found / formula:.2f} |",
                flush=True,
            )


def main() -> None:
    """Print the table, or the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check() if parser.parse_args().check else table()


if __name__ == "__main__":
    main()
