"""A real language model: stories260k."""

import pytest
import transformers as hf


@pytest.fixture(scope="session")
def tokenizer(models_dir):
    return hf.AutoTokenizer.from_pretrained(models_dir / "stories260k")


@pytest.fixture
def model(models_dir):
    return hf.AutoModelForCausalLM.from_pretrained(models_dir / "stories260k")
