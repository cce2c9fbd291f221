"""Script: fuzz one target, guided by coverage of balora, until libFuzzer's limit or a crash.

    python tests/reliability/fuzz_readers.py squad FOLDER -runs=10000 -seed=1

It is a program because libFuzzer takes over the process: its signals, its output, and its end, which comes without a
way back. So what it works with, and an input that crashes, is left in the folder. Behind that stand libFuzzer's own
arguments.
"""

import sys
from pathlib import Path

import atheris
import datasets

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["balora"]):
    from fuzz_targets import TARGETS, seeds, target, words

#: Bytes of an input: twice the largest seed. test_bad_data.py has rows that are longer by far.
LONGEST = 16_384
#: Seconds by the clock, for what never ends. Targets count the processor's, which a busy machine does not stretch.
HANG = 600
MEGABYTES = 6144


def quoted(word: bytes) -> str:
    """Return an entry of libFuzzer's dictionary, at most 64 bytes long."""
    return '"' + "".join(f"\\x{byte:02X}" for byte in word[:64]) + '"\n'


def main(name: str, folder: Path, *further: str) -> None:
    """Fuzz a target and exit; `further` are libFuzzer's arguments."""
    for inner in ("corpus", "read"):
        (folder / inner).mkdir(parents=True)
    for number, seed in enumerate(seeds(name)):
        (folder / "corpus" / str(number)).write_bytes(seed)
    (folder / "words").write_text("".join(map(quoted, words(name))))
    datasets.disable_progress_bars()
    take = target(name, folder / "read")
    limits = [f"-max_len={LONGEST}", f"-timeout={HANG}", f"-rss_limit_mb={MEGABYTES}"]
    places = [f"-dict={folder / 'words'}", f"-artifact_prefix={folder}/", str(folder / "corpus")]

    def run(given: bytes) -> None:
        take(given)

    atheris.Setup([sys.argv[0], *limits, *further, *places], run)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_readers.py {'|'.join(TARGETS)} FOLDER [-runs=N …]")
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
