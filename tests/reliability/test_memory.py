"""Memory stays flat over thousands of training steps, measured in a separate process."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.reliability
TESTS = Path(__file__).resolve().parents[1]
STEPS, WARM_UP = 5000, 1000
#: MB that 4,000 steps may add. The log of a step is some hundred bytes of it.
BOUND = 8
SCRIPT = """
    import json
    import sys
    import psutil
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/training"]
    from test_resuming import TOGETHER, trainer_for
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        seen = []

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 250 == 0:
                self.seen.append((state.global_step, psutil.Process().memory_info().rss / 2**20))

    training = {"max_steps": int(sys.argv[3]), "save_steps": 500, "save_total_limit": 1, "logging_steps": 10}
    adapter = TOGETHER if sys.argv[4] == "llama" else {"method": "lora+reg", "lora_dropout": 0.1}
    trainer = trainer_for(sys.argv[2], sys.argv[4], adapter, {**training, "gradient_accumulation_steps": 1})
    trainer.add_callback(Watch())
    trainer.train()
    print(json.dumps(Watch.seen))
"""


@pytest.mark.parametrize("model", ["llama", "bert"])
def test_memory_stays_flat_from_one_to_five_thousand_steps(model, tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(TESTS), str(tmp_path / "run"), str(STEPS), model]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    seen = dict(json.loads(run.stdout.splitlines()[-1]))
    assert len(seen) == STEPS // 250
    grown = max(size for step, size in seen.items() if step > WARM_UP) - seen[WARM_UP]
    print(f"{model}: {seen[WARM_UP]:.1f} MB after {WARM_UP} steps, at most {grown:.1f} MB more up to {STEPS}")
    assert grown < BOUND, seen
