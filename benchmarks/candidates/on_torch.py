"""What the candidates in PyTorch share: models of a shape, their number types, the device's memory."""

import contextlib
import json

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# float32: all of it. autocast: float32 weights, products in bfloat16. bfloat16: weights and optimizer, too.
PRECISIONS = ("float32", "autocast", "bfloat16")


def make_model(shape: str, precision: str, **more) -> PreTrainedModel:
    """A model with random weights on the device. shape: a config.json; more: further fields of it."""
    fields = json.loads(shape) | more
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=dtype)
    return model.to(DEVICE)


def casting(precision: str) -> contextlib.AbstractContextManager:
    """Where products are cast, if the precision says so."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "autocast")


def device_peak() -> dict[str, float]:
    """Largest memory of the device so far, MB; empty on CPU."""
    if DEVICE == "cpu":
        return {}
    return {"device_peak_mb": torch.cuda.max_memory_allocated() / 1e6}


def versions(*modules) -> dict[str, str]:
    return {module.__name__: module.__version__ for module in (*modules, torch, transformers)}
