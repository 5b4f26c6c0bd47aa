"""No code of others is executed: not from checkpoints, models, caches, configs, templates or data sets."""

import json
import pickle
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from helpers.hostile import BYTES, GOOD, ROOT, Loading, one_line
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import load_tokenizer, make_byte_tokenizer
from sparsepo_jax.models.config_fields import SpecError
from sparsepo_jax.models.directory import read_config
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.train.checkpoint import load_once, save_once

unpickled: list[str] = []
sys.addaudithook(
    lambda event, arguments: (
        unpickled.append(".".join(map(str, arguments))) if event == "pickle.find_class" else None
    )
)


class Canary:
    """Its unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def canary(tmp_path):
    """A file that exists if foreign code ran; afterwards nothing was unpickled and it is not there."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(path))).close()
    assert path.exists() and unpickled, "the canary does not sing"
    path.unlink()
    unpickled.clear()
    yield path
    assert not path.exists() and not unpickled


CONFIG = {"model_type": "gpt2", "vocab_size": 257, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "the index"])
def test_a_pickled_checkpoint_is_refused_and_not_opened(tmp_path, canary, name):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / ("pytorch_model.bin" if name == "the index" else name)).write_bytes(
        pickle.dumps({"transformer.wte.weight": Canary(canary)})
    )
    if name == "the index":
        (directory / "model.safetensors.index.json").write_text(
            '{"weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}'
        )
    with pytest.raises(UserError) as error:
        SafeTensors(directory)
    assert {
        "pytorch_model.bin": "pickle",
        "model.safetensors": "not a readable safetensors file",
        "the index": "expected safetensors files",
    }[name] in one_line(error.value)


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{",
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": 1}',
        "[" * 100_000,
    ],
)
def test_an_index_that_leads_elsewhere_is_one_line(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError) as error:
        SafeTensors(tmp_path)
    one_line(error.value)


@pytest.mark.parametrize(
    "content", ["[]", "{", "null", "\ufeff{}", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_a_model_config_that_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    one_line(error.value)


@pytest.mark.parametrize("file", ["modeling_own.py", "tokenization_own.py", "configuration_own.py"])
def test_code_beside_a_model_is_not_run_even_if_stdin_says_yes(tmp_path, canary, monkeypatch, file):
    """transformers asks "Do you wish to run the custom code?" where it is not told."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory, module = tmp_path / "model", file.removesuffix(".py")
    directory.mkdir()
    code = {
        "AutoConfig": f"{module}.Own",
        "AutoModelForCausalLM": f"{module}.Own",
        "AutoTokenizer": [f"{module}.Own", f"{module}.Own"],
    }
    (directory / file).write_text(f"open({str(canary)!r}, 'w')\nclass Own: pass\n")
    (directory / "config.json").write_text(json.dumps({**CONFIG, "model_type": "own", "auto_map": code}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": code}))
    with pytest.raises(UserError) as error:
        load_tokenizer(str(directory))
    assert "no Hugging Face tokenizer" in one_line(error.value)
    with pytest.raises(SpecError):
        spec_from_hf(read_config(directory))
    (directory / "config.json").write_text(json.dumps({**CONFIG, "auto_map": code}))
    BYTES.save_pretrained(directory)
    content = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(content | {"auto_map": code}))
    assert load_tokenizer(str(directory)).encode("ab") == BYTES.encode("ab")


def test_a_chat_template_reaches_nothing_but_the_messages(tmp_path, canary):
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = (
        "{{ cycler.__init__.__globals__.os.mkdir('"
        + str(canary)
        + "') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    loading = Loading(tmp_path, "pairs", (4000, 2000), None)
    loading.settings["tokenizer"] = tokenizer
    messages = [{"role": "user", "content": "Hi"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": messages, "chosen": "a", "rejected": "b"}))
    with pytest.raises(UserError) as error:
        loading(tmp_path / "rows.jsonl", "error")
    assert "the chat template refuses these messages" in one_line(error.value)


def test_pickles_in_the_cache_are_not_loaded_and_the_tokens_made_anew(tmp_path, canary):
    rows, load = tmp_path / "rows.jsonl", Loading(tmp_path, "pairs", (4000, 2000), None)
    rows.write_text(json.dumps(GOOD["pairs"]))
    first = load(rows, "error")
    (kept,) = (tmp_path / "cache").glob("*.npz")
    with np.load(kept) as arrays:
        columns = dict(arrays)
    for put in (
        lambda: np.savez(kept, **columns | {"files": np.array([Canary(canary)], object)}),
        lambda: np.savez(kept, **columns | {"bad_rows": np.array(Canary(canary), object)}),
        lambda: kept.write_bytes(pickle.dumps(Canary(canary))),
        lambda: kept.write_bytes(
            b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
            + b" " * 60
            + b"\n"
            + pickle.dumps([Canary(canary)])
        ),
    ):
        put()
        assert load(rows, "error").digest() == first.digest()
        with np.load(kept) as arrays:
            assert arrays["prompts"].tolist() == columns["prompts"].tolist()


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir",
        "!!python/object/new:os.mkdir",
        "!!python/name:os.mkdir",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir>",
    ],
)
def test_a_config_runs_no_python(tmp_path, canary, tag):
    (tmp_path / "config.yaml").write_text(f"stages: [report]\noutput_dir: {tag} [{str(canary)!r}]\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "config.yaml")
    assert "without tags" in error.value.lines[0]
    with pytest.raises(ConfigError):
        load_config(ROOT / "configs" / "quickstart.yaml", [f"output_dir={tag} [{str(canary)!r}]"])


def test_a_script_in_a_data_set_is_not_run(tmp_path, canary, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "own.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (directory / "rows.pkl").write_bytes(pickle.dumps(Canary(canary)))
    loading = Loading(tmp_path, "pairs", (4000, 2000), None)
    with pytest.raises(UserError) as error:
        loading(directory, "error")
    assert one_line(error.value).startswith(f"{directory}: `datasets` cannot read it")
    with pytest.raises(UserError, match="cannot tell its format"):
        loading(directory / "own.py", "error")


def test_a_training_state_is_read_without_pickle(tmp_path, canary):
    """Orbax keeps arrays as TensorStore files and what is about them as JSON."""
    state = {"a": jnp.arange(4.0)}
    save_once(tmp_path / "state", state)
    unpickled.clear()  # writing is ours
    for place in [tmp_path / "state", *(path for path in (tmp_path / "state").rglob("*") if path.is_dir())]:
        (place / "state.pkl").write_bytes(pickle.dumps(Canary(canary)))
    assert load_once(tmp_path / "state", state)["a"].tolist() == [0, 1, 2, 3]
