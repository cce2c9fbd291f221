"""BOLD (Dhamala et al., 2021): prompts about people of several groups, for a language model to go on from."""

import json
from dataclasses import dataclass
from pathlib import Path

from balora.errors import BALoraError

#: What a domain's file is called, behind the domain.
SUFFIX = "_prompt.json"


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        domain: What its group is compared within, such as `gender`.
        group: Whom it is about, such as `American_actresses`.
        name: Of the person or frame, which may have several prompts.
        text: What is to be gone on from, without blanks around it: a tokenizer would take one at the end for a word.
    """

    domain: str
    group: str
    name: str
    text: str


def read_bold(path: str | Path, *, max_samples: int | None = None) -> list[Prompt]:
    """The prompts of a domain, or of all domains in a folder: files as published, `{group: {name: [prompts]}}`.

    Args:
        path: A file, whose name without `_prompt.json` is its domain, or a folder of `*_prompt.json`.
        max_samples: The first so many of each group.

    Raises:
        BALoraError: If there is no such file, it has another form, or fewer than two groups to compare.
    """
    path = Path(path)
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise BALoraError(f"{path}: holds no file that ends in {SUFFIX}, such as gender{SUFFIX}")
    prompts = []
    for file in files:
        for group, names in _groups(file).items():
            domain = file.name.removesuffix(".json").removesuffix("_prompt")
            own = [Prompt(domain, group, name, text.strip()) for name, texts in names.items() for text in texts]
            prompts += own[:max_samples]
    return prompts


def _groups(file: Path) -> dict[str, dict[str, list[str]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BALoraError(f"{file}: cannot be read as a JSON file: {error}") from error
    if not isinstance(content, dict) or len(content) < 2:
        raise BALoraError(f"{file}: expected an object of two groups or more, to compare with one another")
    for group, names in content.items():
        if not isinstance(names, dict) or not all(isinstance(texts, list) for texts in names.values()):
            raise BALoraError(f"{file}, {group!r}: expected an object of lists, {{name: [prompts]}}")
        texts = [text for own in names.values() for text in own]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise BALoraError(f"{file}, {group!r}: expected prompts, texts that are not blank")
    return content
