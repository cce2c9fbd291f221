"""Models in GGUF files, as llama.cpp uses them: converted once to dense weights, by Transformers' own reader.

A name that ends in `.gguf` is a local file, or `owner/repository/file.gguf` on the Hub. The dense model, with its
tokenizer and chat template, lies in balora's cache folder in float32, keyed by the file's content.
"""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from balora.errors import BALoraError
from balora.utils.files import cache_folder, report_full_disk, write_directory
from balora.utils.progress import working

GgufConfig = getattr(transformers, "GgufConfig", None)
SUFFIX = ".gguf"
#: First bytes of every GGUF file.
MAGIC = b"GGUF"


def is_gguf(name: str) -> bool:
    """Return whether the name of a model is that of a GGUF file."""
    return name.lower().endswith(SUFFIX)


def dense_folder(name: str) -> Path:
    """Return a folder with the dense model and tokenizer of a GGUF file; convert it on the first call.

    Args:
        name: A local file, or `owner/repository/file.gguf` on the Hub.

    Raises:
        BALoraError: If there is no such file, the package `gguf` is missing, or the file is damaged or of an
            architecture that Transformers does not read.
    """
    file = _find(name)
    if importlib.util.find_spec("gguf") is None:
        raise BALoraError("GGUF files need the package gguf, which is not installed; use pip install 'balora[gguf]'")
    status = file.stat()
    # The reader may change between versions of Transformers.
    key = f"{_digest(file, status.st_size, status.st_mtime_ns)}-transformers-{transformers.__version__}"
    folder = cache_folder() / "gguf" / f"{file.stem}-{key}"
    if not folder.is_dir():
        with working(f"converting {file.name} to dense weights"), report_full_disk(_existing_parent(folder)):
            write_directory(folder, lambda directory: _convert(file, directory))
    return folder


def _find(name: str) -> Path:
    file = Path(name)
    if file.is_file():
        return file
    parts = name.split("/")
    if file.is_absolute() or len(parts) < 3 or parts[0] in ("", ".", ".."):
        raise BALoraError("there is no such file; name a local file, or owner/repository/file.gguf on the Hub")
    owner, repository, *inside = parts
    try:
        return Path(cached_file(f"{owner}/{repository}", "/".join(inside)))
    except OSError as error:
        raise BALoraError(
            f"there is no such local file, nor can it be had as {'/'.join(inside)} of {owner}/{repository} from the "
            "Hub or its cache; correct the name, or connect to the Hub"
        ) from error


@lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    """Return a hex digest of a file's content; a file of the same size and time is not read again."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _existing_parent(folder: Path) -> Path:
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _convert(file: Path, folder: Path) -> None:
    model, tokenizer = _read(file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise BALoraError("the file is not in GGUF format")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # Newer versions of Transformers would keep the weights in blocks where they have a kernel for them.
    dense = {"quantization_config": GgufConfig(dequantize=True)} if GgufConfig is not None else {}
    try:
        config = AutoConfig.from_pretrained(**where)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, loading = auto.from_pretrained(**where, **dense, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # a damaged file can raise anything
        if "not supported" in str(error):
            raise  # it names the architecture
        said = " ".join(str(error).split())[:200]
        raise BALoraError(
            f"the file is damaged, or Transformers does not read its kind ({type(error).__name__}: {said})"
        ) from error
    if loading["missing_keys"]:
        raise BALoraError(f"the file is incomplete: it has no tensor for {min(loading['missing_keys'])}")
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)  # which refuses to be saved
    return model, tokenizer
