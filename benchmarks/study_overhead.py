"""Share of a study's time outside of training and measuring: imports, reading, tokenizing, loading, the report.

    python benchmarks/study_overhead.py

A quickstart study of twelve short runs, three methods with four seeds; the time of the untouched model's is left out,
and the world's model is pretrained before. A run trains and measures from the line that announces its steps to its
`result.json`; everything else between the command and its end is overhead. Prints a line of JSON for each round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from processes import write_rows

from balora.recipe.parse import parse
from balora.world import build_world

METHODS = ["lora", "pissa", "ba-lora"]


def measure(steps: int, seeds: int) -> dict[str, float]:
    """Return the seconds of the study, those of them in training and measuring, and the share outside of both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {"methods": METHODS, "seeds": list(range(seeds)), "max_steps": steps, "output_dir": str(folder)}
        command = [sys.executable, "-m", "balora.cli", "quickstart", *(f"--{k}={v}" for k, v in settings.items())]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        began, wall = time.perf_counter(), time.time()
        announced, trained = [], {}
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        ) as study:
            for line in study.stderr:
                now = time.time()
                if line.startswith("["):
                    announced.append(now)
                elif line.rstrip().endswith(f": {steps} steps"):
                    method, seed = line.split(":")[0].split(", seed ")
                    trained[f"{method}-seed{seed}"] = now
        if study.returncode:
            sys.exit(f"study_overhead: {' '.join(command)} ended with {study.returncode}")
        total = time.perf_counter() - began
        finished = {path.parent.name: path.stat().st_mtime for path in folder.glob("runs/*/result.json")}
    untouched = announced[1] - announced[0]
    inside = sum(finished[run] - since for run, since in trained.items())
    assert len(trained) == len(METHODS) * seeds
    return {
        "runs": len(trained),
        "study_seconds": total - untouched,
        "training_and_measuring_seconds": inside,
        "before_first_run_seconds": announced[0] - wall,
        "overhead": 1 - inside / (total - untouched),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="training steps of each run")
    parser.add_argument("--seeds", type=int, default=4, help="runs of each of the three methods")
    parser.add_argument("--rounds", type=int, default=1, help="studies, one after the other")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    options = parser.parse_args()
    quickstart, _ = parse("quickstart", [str(Path(__file__).parents[1] / "src/balora/recipes/quickstart.yaml")])
    build_world(quickstart.world)
    rows = []
    for _ in range(options.rounds):
        row = {key: round(value, 3) for key, value in measure(options.steps, options.seeds).items()}
        rows.append({"contender": "study", "steps": options.steps, **row})
        print(json.dumps(rows[-1]), flush=True)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
