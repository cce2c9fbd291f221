"""How the cost of each term grows with tokens, vocabulary, rank and k: measured beside what the arithmetic says.

    python benchmarks/growth.py --output docs/results/cost

Each point is the median of a few runs of one term forward and backward on random hidden states, on two threads: the
term alone, from hidden states (`balora.fused`) and from logits (`balora.losses`); over the rank, a whole step of a
small Llama with and without the objective. Writes `growth.csv` (one row a point) and `growth.png`, and prints the
exponents: the slope of log time over log size in the upper half of each curve.
"""

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from contenders import Shape, balora, batch_of, pissa

from balora import BALoraConfig
from balora.fused import Head, HeadSpectrum, Taught, TokenTerm, fused_token_loss
from balora.losses import consistency_loss, spectral_loss, topk_entropy_loss

D, TOKENS, VOCABULARY, K, REPEATS = 256, 512, 16384, 10, 5
SIZES = {
    "tokens": [128, 256, 512, 1024, 2048, 4096],
    "vocabulary": [4096, 8192, 16384, 32768, 65536, 131072],
    "rank": [4, 8, 16, 32, 64, 128],
    "k": [1, 4, 16, 64],
}
TERMS = ("task", "consistency", "diversity", "spectral")
#: What the arithmetic says: the exponent of each size in the time, from hidden states and from logits. The randomized
#: spectral term multiplies M × d by d × (k + 10), so it nears 1 in k; the one from logits M × V by V × M, and takes
#: the eigenvectors of M × M, 3 where those rule. Along k the entropy's K moves too.
EXPECTED = {
    ("tokens", "fused"): {"task": 1, "consistency": 1, "diversity": 1, "spectral": 1},
    ("tokens", "logits"): {"task": 1, "consistency": 1, "diversity": 1, "spectral": 2},
    ("vocabulary", "fused"): {"task": 1, "consistency": 1, "diversity": 1, "spectral": 0},
    ("vocabulary", "logits"): {"task": 1, "consistency": 1, "diversity": 1, "spectral": 1},
    ("k", "fused"): {"diversity": 0, "spectral": 1},
    ("k", "logits"): {"diversity": 0, "spectral": 0},
}


def seconds(run: Callable[[], object]) -> float:
    """Median of a few runs after one that does not count."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def term_costs(tokens: int, vocabulary: int, k: int) -> dict[tuple[str, str], float]:
    """Seconds of each term, by (way, term)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, D, generator=generator).requires_grad_()
    known = hidden.detach() + 0.1 * torch.randn(1, tokens, D, generator=generator)
    head = Head(torch.randn(vocabulary, D, generator=generator) / D**0.5)
    labels = torch.randint(vocabulary, (1, tokens), generator=generator)
    nothing = torch.full_like(labels, -100)
    config, spectrum = BALoraConfig(top_k=k), HeadSpectrum()
    taught = Taught(known, head, torch.ones(1, dtype=torch.bool))

    def fused(term: str) -> None:
        if term == "spectral":
            loss = spectrum.loss(hidden.flatten(0, 1), head, k=k)
        else:
            own, teacher = labels if term == "task" else nothing, taught if term == "consistency" else None
            terms = {} if term == "task" else {term: TokenTerm(1.0, needs_teacher=term == "consistency")}
            loss, _ = fused_token_loss(hidden, head, own, None, teacher, config, terms, total_items=tokens, share=1.0)
        loss.backward()

    def from_logits(term: str) -> None:
        logits = head.logits(hidden)
        if term == "task":
            loss = F.cross_entropy(logits[0], labels[0])
        elif term == "consistency":
            loss = consistency_loss(logits, head.logits(known), temperature=2.0)
        elif term == "diversity":
            loss = topk_entropy_loss(logits, top_k=k)
        else:
            loss = spectral_loss(logits, k=k, normalization="frobenius")
        loss.backward()

    ways = {"fused": fused, "logits": from_logits}
    return {(way, term): seconds(lambda: run(term)) for way, run in ways.items() for term in TERMS}  # noqa: B023


def step_costs(r: int) -> dict[tuple[str, str], float]:
    """Seconds of a step of a small Llama with adapters of rank r, plain and with the objective."""
    shape = Shape(D, 4, VOCABULARY, 2, 256, r, 688, 4)
    costs = {}
    for name, contender in (("plain PiSSA", pissa), ("balora", balora)):
        _, loss_of = contender(shape)
        batch = batch_of(shape)
        costs["step", name] = seconds(lambda: loss_of(batch).backward())  # noqa: B023
    return costs


def measure() -> list[dict[str, object]]:
    """A row for every point."""
    rows = []
    for axis, sizes in SIZES.items():
        for size in sizes:
            if axis == "rank":
                costs = step_costs(size)
            else:
                at = {"tokens": TOKENS, "vocabulary": VOCABULARY, "k": K} | {axis: size}
                costs = term_costs(at["tokens"], at["vocabulary"], at["k"])
            rows += [
                {"axis": axis, "size": size, "way": way, "term": term, "seconds": round(cost, 5)}
                for (way, term), cost in costs.items()
            ]
    return rows


def curves(rows: list[dict[str, object]], axis: str) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    """Sizes and seconds along an axis, by (way, term)."""
    found: dict[tuple[str, str], tuple[list[int], list[float]]] = {}
    for row in rows:
        if row["axis"] == axis:
            sizes, times = found.setdefault((row["way"], row["term"]), ([], []))
            sizes.append(row["size"])
            times.append(row["seconds"])
    return found


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log time over log size in the upper half, where fixed costs are small."""
    half = len(sizes) // 2
    return math.log(times[-1] / times[half - 1]) / math.log(sizes[-1] / sizes[half - 1])


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Four panels, log–log: solid from hidden states, dashed from logits, grey the slope of 1."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 4), sharey=True)
    colours = dict(zip(TERMS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))
    colours |= {"plain PiSSA": "#555555", "balora": "#0072b2"}
    for panel, axis in zip(axes, SIZES, strict=True):
        for (way, term), (sizes, times) in curves(rows, axis).items():
            style = "--" if way == "logits" else "-"
            panel.loglog(sizes, times, style, color=colours[term], marker="o", markersize=3.5, label=f"{term}, {way}")
        low = SIZES[axis]
        floor = min(row["seconds"] for row in rows) * 0.6
        panel.loglog(low, [floor * size / low[0] for size in low], color="#bbbbbb", linewidth=1, label="slope 1")
        panel.set_xscale("log", base=2)
        panel.set_xticks(low, [f"{size // 1024}k" if size >= 1024 else str(size) for size in low])
        panel.minorticks_off()
        panel.set_xlabel({"tokens": "tokens M", "vocabulary": "vocabulary V", "rank": "rank r"}.get(axis, "k and K"))
        panel.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axes[0].set_ylabel("seconds, forward and backward")
    axes[0].legend(fontsize=6.5, ncol=2, loc="upper left", frameon=False)
    axes[2].legend(fontsize=7, loc="upper left", frameon=False)
    figure.suptitle(f"Cost as work grows (M = {TOKENS}, V = {VOCABULARY}, k = {K}, d = {D} where not on the axis)")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def report(rows: list[dict[str, object]]) -> None:
    """Print the exponents."""
    print("| time over | of | from hidden states: expected | measured | from logits: expected | measured |")
    print("|---|---|---|---|---|---|")
    for axis in ("tokens", "vocabulary", "k"):
        found = curves(rows, axis)
        for term in EXPECTED[axis, "fused"]:
            cells = [f"{EXPECTED[axis, way][term]} | {exponent(*found[way, term]):.2f}" for way in ("fused", "logits")]
            print(f"| {axis} | {term} | {' | '.join(cells)} |")
    for (_, name), curve in curves(rows, "rank").items():
        print(f"a step over the rank, {name}: exponent {exponent(*curve):.2f}")


def main() -> None:
    """Measure, write, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for growth.csv and growth.png")
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = measure()
    options.output.mkdir(parents=True, exist_ok=True)
    with open(options.output / "growth.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.output / "growth.png")
    report(rows)


if __name__ == "__main__":
    main()
