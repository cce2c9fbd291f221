"""Paths of the real data, the real models and the oracle beside this checkout."""

import os
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA = Path(os.environ.get("BALORA_DATA", SHARED / "data"))
MODELS = Path(os.environ.get("BALORA_MODELS", SHARED / "models"))
VECTORS = SHARED / "vectors" / "equations.safetensors"
