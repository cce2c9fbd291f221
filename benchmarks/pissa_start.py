"""Time of PiSSA's start: the exact SVD against the seeded randomized one, on the matrices of Llama-2-7B's layers.

    python benchmarks/pissa_start.py            # one matrix of each shape, and what 32 layers of them add up to
    python benchmarks/pissa_start.py --whole    # a CUDA device: the whole model, random weights, bf16

`captured` is the squared norm of the rank-128 factors' product over that of the exact ones. The weights are Gaussian,
whose flat spectrum is the hardest case: trained weights decay, and the randomized start is nearer there.
"""

import argparse
import sys
import time

import torch
from contenders import SHAPES, TARGETS, base_model

from balora import BALoraConfig, get_balora_model
from balora.adapters.initialization import pissa_factors

RANK = 128
#: Shape of each matrix and how many a layer has.
MATRICES = {(4096, 4096): 4, (4096, 11008): 3}
LAYERS = 32


def single_matrices(device: str) -> None:
    """A line for each number of iterations."""
    generator = torch.Generator(device).manual_seed(0)
    weights = {shape: torch.randn(shape, generator=generator, device=device) / shape[1] ** 0.5 for shape in MATRICES}
    best = {}
    print(f"{'niter':>6}{'4096 × 4096':>14}{'4096 × 11008':>14}{'7B, minutes':>13}{'captured':>10}")
    for niter in (None, 0, 1, 2, 4, 8):
        seconds, captured = {}, []
        for shape, weight in weights.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            a, b = pissa_factors(weight, RANK, niter=niter)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[shape] = time.perf_counter() - start
            energy = ((b.T @ b) * (a @ a.T)).sum().item()  # ‖B·A‖²
            captured.append(energy / best.setdefault(shape, energy))
        whole = LAYERS * sum(seconds[shape] * count for shape, count in MATRICES.items()) / 60
        times = "".join(f"{value:>13.2f}s" for value in seconds.values())
        print(f"{niter if niter is not None else 'exact':>6}{times}{whole:>13.1f}{min(captured):>10.3f}", flush=True)


def whole_model() -> None:
    """Seconds and memory of `get_balora_model` on the whole 7B."""
    model = base_model(SHAPES["llama2-7b"])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    adapted = get_balora_model(model, BALoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, pissa_niter=4))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    gigabytes = [x / 2**30 for x in (before, torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated())]
    print(
        f"{seconds:.1f} s for {len(adapted.targeted_module_names)} matrices; GiB before {gigabytes[0]:.1f}, after "
        f"{gigabytes[1]:.1f} (adapter and teacher), peak {gigabytes[2]:.1f}"
    )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    if options.whole and not torch.cuda.is_available():
        sys.exit("pissa_start: --whole wants a CUDA device and this machine has none")
    if options.whole:
        whole_model()
    else:
        single_matrices("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
