"""Directories of checkpoints as people have them: where the weights cannot be read, `--check` and the run say
the same line, and no stage has begun."""

import dataclasses
import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.parity import load_ours, make_theirs
from helpers.program import write_config
from helpers.tiny import CONFIGS, GPT2, LLAMA
from helpers.wrapped import WRAPPED
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import load_tokenizer, make_byte_tokenizer
from sparsepo_jax.main import main
from sparsepo_jax.models.adapter_config import read_adapter_config
from sparsepo_jax.models.directory import read_config, read_json_object
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.models.weights import check_tensors

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c9\nsize 1234\n"
SHAPE = LLAMA | {"vocab_size": 264, "max_position_embeddings": 64, "eos_token_id": 256, "pad_token_id": 256}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    make_theirs(SHAPE).save_pretrained(directory)
    make_byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def model(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "model")
    return tmp_path / "model"


def rename(name):
    return lambda model: (model / WEIGHTS).rename(model / name)


def write(name, text):
    return lambda model: (model / name).write_text(text)


def instead_of_weights(name):
    def change(model):
        (model / WEIGHTS).unlink()
        (model / name).write_bytes(b"...")

    return change


def tensors(change):
    """change(name, tensor) -> the name and tensor to store; None leaves it out."""

    def rewrite(model):
        stored = [change(name, x) for name, x in load_file(model / WEIGHTS).items()]
        save_file({name: x.contiguous() for name, x in filter(None, stored)}, model / WEIGHTS)

    return rewrite


def break_off(model):
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:-100])


def leave_out_a_shard(model):
    names = sorted(load_file(model / WEIGHTS))
    (model / WEIGHTS).rename(model / "model-00001-of-00002.safetensors")
    files = {name: f"model-0000{1 + (number > 3)}-of-00002.safetensors" for number, name in enumerate(names)}
    (model / INDEX).write_text(json.dumps({"weight_map": files}))


def link_to_nothing(model):
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).symlink_to("../blobs/4d7a")


def adapt_one(name, x):
    return (name.replace("q_proj.weight", "q_proj.lora_A.default.weight"), x)


UNFIT = {
    "pointer": (write(WEIGHTS, POINTER), f"{WEIGHTS}: only Git LFS's pointer to the file: .*git lfs pull"),
    "web page": (write(WEIGHTS, "<!DOCTYPE html>\n<p>Log in</p>"), f"{WEIGHTS}: a web page in the place of"),
    "broken off": (break_off, "not a readable safetensors file .*download or copy it again"),
    "empty": (write(WEIGHTS, ""), "not a readable safetensors file .*download or copy it again"),
    "pointer to tokenizer": (write("tokenizer.json", POINTER), "tokenizer.json: only Git LFS's pointer"),
    "pointer to config": (write("config.json", POINTER), "config.json: only Git LFS's pointer"),
    "shard": (leave_out_a_shard, "model-00002-of-00002.safetensors, named by the index, is missing"),
    "index": (rename("model-00001-of-00001.safetensors"), f"whose index is missing: download {INDEX}"),
    "variant": (
        rename("model.fp16.safetensors"),
        "found model.fp16.safetensors, .*: rename it to model.safe",
    ),
    "makers": (rename("consolidated.safetensors"), "found consolidated.safetensors, the form of the model's"),
    "download": (rename(f"{WEIGHTS}.incomplete"), "incomplete, a download that has not ended"),
    "gguf": (instead_of_weights("model-Q4_K_M.gguf"), "found model-Q4_K_M.gguf, the form of llama.cpp"),
    "deepspeed": (instead_of_weights("zero_to_fp32.py"), "found zero_to_fp32.py, of DeepSpeed: join"),
    "meta": (instead_of_weights("model.00.pth"), "found model.00.pth, a pickle, which is not opened"),
    "link": (link_to_nothing, "found model.safetensors, a link to ../blobs/4d7a, which is not there"),
    "compiled": (
        tensors(lambda name, x: (f"_orig_mod.{name}", x)),
        r"names as _orig_mod.model.embed_tokens.weight, which a wrapper around the model leaves .*within",
    ),
    "parallel": (tensors(lambda name, x: (f"module.{name}", x)), "names as module.model.embed_tokens.weight"),
    "adapted": (tensors(adapt_one), "adapters lie among the weights: merge them"),
    "no head": (
        tensors(lambda name, x: None if name == "lm_head.weight" else (name, x)),
        r"1 tensor\(s\) do not fit config.json: lm_head.weight is missing",
    ),
    "more rows": (
        tensors(lambda name, x: (name, torch.cat([x, x[:8]]) if "embed" in name else x)),
        "embed_tokens.weight (has 272 rows, and vocab_size in config.json is 264|has shape .272, 16.)",
    ),
    "wider": (
        tensors(lambda name, x: (name, torch.cat([x, x]) if "gate_proj" in name else x)),
        r"the tensors hold [\d,]+ numbers, and config.json means [\d,]+|gate_proj.weight has shape \[",
    ),
    "in 8 bits": (
        tensors(lambda name, x: (name, x.to(torch.float8_e4m3fn) if "up_proj" in name else x)),
        r"model.layers.0.mlp.up_proj.weight holds F8_E4M3, not floating-point numbers",
    ),
    "generation": (write("generation_config.json", "{,}"), "generation_config.json: no valid JSON"),
    "generation's ends": (
        write("generation_config.json", '{"eos_token_id": "2"}'),
        "generation_config.json: eos_token_id: expected a token id, a list of them or null, got '2'",
    ),
}


def run_of(directory, stages=("po",), **settings):
    pairs = directory / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 8)
    return write_config(
        directory,
        stages=list(stages),
        tokenizer=None,
        data={"sft": [], "train": [{"path": str(pairs)}], "eval": []},
        objective={"kind": "dpo", "beta": 0.1, "mask": None},
        po={"steps": 1, "batch_size": 8},
        **settings,
    )


@pytest.mark.parametrize("name", UNFIT)
def test_the_check_and_the_start_of_a_run_say_what_is_wrong_with_a_policy(name, model, tmp_path, capsys):
    change, expected = UNFIT[name]
    change(model)
    path = run_of(tmp_path, policy={"config": None, "path": str(model)})
    for arguments, status in ((["--check"], 2), ([], 1)):
        assert main(["--config", str(path), *arguments]) == status
        errors = capsys.readouterr().err
        line = errors.splitlines()[-1]
        assert re.search(expected, line) and len(line) < 600 and "step" not in errors, errors


@pytest.mark.parametrize("config", (CONFIGS | WRAPPED).values(), ids=CONFIGS | WRAPPED)
def test_the_check_takes_every_family_as_transformers_saves_it(config, tmp_path):
    make_theirs(config).save_pretrained(tmp_path)
    tensors = SafeTensors(tmp_path)
    spec = spec_from_hf(read_config(tmp_path))
    check_tensors(spec, tensors, "here")
    with pytest.raises(UserError, match="rows, and vocab_size in config.json is"):
        check_tensors(dataclasses.replace(spec, vocab_size=spec.vocab_size + 1), tensors, "here")


def test_a_reference_that_cannot_be_read_stops_the_run_before_sft(model, tmp_path, capsys):
    reference = tmp_path / "reference"
    shutil.copytree(model, reference)
    (reference / WEIGHTS).write_text(POINTER)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    path = run_of(
        tmp_path,
        ("sft", "po"),
        policy={"config": None, "path": str(model)},
        reference={"path": str(reference)},
    )
    overrides = [f'data.sft=[{{"path": "{rows}"}}]', "sft.steps=1", "sft.batch_size=8"]
    for arguments, status in ((["--check"], 2), ([], 1)):
        assert main(["--config", str(path), *arguments, *overrides]) == status
        assert f"{reference}/{WEIGHTS}: only Git LFS's pointer" in capsys.readouterr().err
    assert not (tmp_path / "run" / "sft").exists()


def test_a_directory_that_has_no_weights_yet_is_a_note_of_the_check(model, tmp_path, capsys):
    (model / WEIGHTS).unlink()
    path = run_of(tmp_path, policy={"config": None, "path": str(model)})
    assert main(["--config", str(path), "--check"]) == 0
    assert f"note: {model}: expected {WEIGHTS} or {INDEX}, found neither" in capsys.readouterr().out
    assert main(["--config", str(path)]) == 1
    assert "found neither" in capsys.readouterr().err


@pytest.mark.parametrize("within", ["checkpoint-500", "snapshots/0a1b2c"])
def test_a_directory_around_checkpoints_says_which_to_take(within, model, tmp_path, capsys):
    around = tmp_path / "around"
    shutil.copytree(model, around / within)
    shutil.copytree(model, around / "checkpoint-20")
    os.utime(around / "checkpoint-20" / "config.json", (0, 0))
    expected = f"{around}: expected a config.json .* there is one in {around / within}: set reference.path to"
    with pytest.raises(UserError, match=expected):
        read_config(around, "reference")
    path = run_of(tmp_path, policy={"config": None, "path": str(around)})
    assert main(["--config", str(path), "--check"]) == 2
    assert f"there is one in {around / within}: set policy.path to that" in capsys.readouterr().err


def test_a_directory_around_adapters_says_which_to_take(tmp_path):
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="there is one in .*/checkpoint-10: set policy.adapter to that"):
        read_adapter_config(str(tmp_path), "policy.adapter")


def test_other_files_that_git_did_not_fetch_do_not_matter(model, tmp_path, capsys):
    """As after `git lfs pull --include model.safetensors`."""
    (model / "pytorch_model.bin").write_text(POINTER)
    (model / "onnx").mkdir()
    (model / "onnx" / "tokenizer.json").write_text(POINTER)
    path = run_of(tmp_path, policy={"config": None, "path": str(model)})
    assert main(["--config", str(path), "--check"]) == 0
    assert load_tokenizer(str(model)) and SafeTensors(model).shapes()


def test_a_file_that_cannot_be_opened_is_one_line(tmp_path):
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(UserError, match="generation_config.json: Is a directory"):
        read_json_object(tmp_path / "generation_config.json")


def test_what_a_tokenizer_lacks_is_said_beyond_the_first_line_of_transformers(model):
    """Its messages say what is wrong in the lines after the first."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"bos_token_id": [1]}))
    with pytest.raises(UserError, match=r"'bos_token_id': .* with value \[1\] doesn't match") as error:
        load_tokenizer(str(model))
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_model_names_some_tensors_only(plain, tmp_path):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    make_theirs(GPT2 | {"n_layer": 9}).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((plain / "config.json").read_text())
    with pytest.raises(
        UserError, match=r"\d+ tensor\(s\) do not fit config.json: .*; and \d+ more$"
    ) as error:
        load_ours(tmp_path)
    assert len(str(error.value)) < 2000
