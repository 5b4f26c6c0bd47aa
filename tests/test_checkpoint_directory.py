"""A checkpoint directory means what transformers takes it to mean, and the export gives it back."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.parity import load_ours, make_theirs
from helpers.program import lines_of, run, write_config
from helpers.tiny import GPT2, LLAMA
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.data.tokenizers import END, make_byte_tokenizer
from sparsepo_jax.generate.sampler import Generated, continuation
from sparsepo_jax.generate.stop_strings import StopStrings, stop_within
from sparsepo_jax.main import main
from sparsepo_jax.models.directory import end_tokens, read_config, read_generation_config
from sparsepo_jax.models.export import save_hf
from sparsepo_jax.models.spec import spec_from_hf
from sparsepo_jax.models.stored_tensors import SafeTensors
from sparsepo_jax.run.check import make_plan_text

SHAPE = LLAMA | {
    "vocab_size": 264,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM_START, IM_END = 257, 258


def make_tokenizer(*more):
    """257 entries, <|im_start|> and <|im_end|> (its EOS), and more special ones."""
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *more]})
    tokenizer.eos_token, tokenizer.bos_token = "<|im_end|>", None
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_checkpoint(directory, config=SHAPE, *, dtype=torch.float32, generation=None, tokenizer=None):
    """As transformers saves it; generation: the content of generation_config.json, None for none."""
    make_theirs(config).to(dtype).save_pretrained(directory)
    (directory / "generation_config.json").unlink()
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    return directory


def change_json(file, **changes):
    """null removes a field."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def theirs_of(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


# ---------------------------------------------------------------- which files


def put_shards(directory, tensors, names):
    """The tensors, dealt to files, and their index."""
    where = {tensor: names[n % len(names)] for n, tensor in enumerate(sorted(tensors))}
    for name in names:
        save_file(
            {tensor: tensors[tensor] for tensor in where if where[tensor] == name},
            directory / name,
            {"format": "pt"},
        )
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("plain"), LLAMA)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "files",
    [
        "single",
        "index",
        "single index",
        "index stale",
        "index bin",
        "single bin",
        "single original",
        "single chosen",
        "single chosen-index",
    ],
)
def test_the_weights_are_those_that_transformers_takes(plain, tmp_path, files):
    """Each file holds other numbers."""
    shutil.copy(plain / "config.json", tmp_path)
    tensors = load_file(plain / "model.safetensors")

    def other(n):
        return {name: (x + n).contiguous() for name, x in tensors.items()}

    if "single" in files:
        save_file(other(1), tmp_path / "model.safetensors", {"format": "pt"})
    if "index" in files:
        put_shards(tmp_path, other(2), SHARDS)
    if "stale" in files:
        save_file(other(3), tmp_path / "model-00001-of-00007.safetensors", {"format": "pt"})
    if "bin" in files:
        torch.save(other(4), tmp_path / "pytorch_model.bin")
    if "original" in files:
        (tmp_path / "original").mkdir()
        save_file(other(5), tmp_path / "original" / "model.safetensors", {"format": "pt"})
        save_file(other(5), tmp_path / "consolidated.safetensors", {"format": "pt"})
    if "chosen" in files:
        save_file(other(6), tmp_path / "other.safetensors", {"format": "pt"})
        chosen = "model.safetensors.index.json" if "chosen-index" in files else "other.safetensors"
        change_json(tmp_path / "config.json", transformers_weights=chosen)
    expected = theirs_of(tmp_path).get_input_embeddings().weight.detach().numpy()
    content = {k: v for k, v in read_config(tmp_path).items() if k != "transformers_weights"}
    ((_, ours),) = SafeTensors(tmp_path).read({"model.embed_tokens.weight"})
    np.testing.assert_array_equal(ours, expected)
    assert spec_from_hf(content)


def test_pickled_weights_are_refused_with_what_converts_them(plain, tmp_path):
    shutil.copy(plain / "config.json", tmp_path)
    torch.save(load_file(plain / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin, a pickle.*save_pretrained") as error:
        SafeTensors(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="policy.path: .*pytorch_model.bin, a pickle"):
        plan_of(tmp_path, policy={"config": None, "path": str(tmp_path)}, tokenizer=None)
    command = str(error.value).split("python -c ")[1].strip('"')
    exec(command)  # what the user would run
    assert SafeTensors(tmp_path).shapes() == SafeTensors(plain).shapes()


@pytest.mark.parametrize("head", ["absent", "equal", "other", "in the embedding's place"])
def test_a_tied_head_is_what_transformers_makes_of_it(tmp_path, head):
    """Either of two equal tensors is enough. Two that differ are not tied, which we do not run."""
    make_checkpoint(tmp_path, LLAMA | {"tie_word_embeddings": True})
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    if head == "in the embedding's place":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    elif head != "absent":
        tensors["lm_head.weight"] = embedding.clone() + (head == "other")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    if head == "other":
        with pytest.raises(
            UserError, match="lm_head.weight is not model.embed_tokens.weight.*tie_word_embeddings to false"
        ):
            load_ours(tmp_path)
        return
    _, _, weights = load_ours(tmp_path)
    np.testing.assert_array_equal(
        weights["embed.embedding"], theirs_of(tmp_path).lm_head.weight.detach().numpy()
    )


@pytest.mark.parametrize("end", ["-bnb-4bit", "-unsloth-bnb-4bit"])
def test_an_adapter_for_a_copy_in_4_bits_names_the_model_itself(tmp_path, end):
    """As Unsloth's, whose base would be refused in turn."""
    content = {"peft_type": "LORA", "base_model_name_or_path": f"unsloth/Qwen3-4B{end}"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    expected = f"for unsloth/Qwen3-4B{end}, whose weights are in 4 bits.*: set policy.path=unsloth/Qwen3-4B "
    with pytest.raises(UserError, match=expected):
        read_config(tmp_path)


@pytest.mark.parametrize("where", ["policy", "reference"])
def test_an_adapter_says_what_to_set(plain, tmp_path, capsys, where):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    )
    policy = {"config": None, "path": str(adapter if where == "policy" else plain)}
    reference = {"path": str(adapter)} if where == "reference" else {}
    remedy = f"set {where}.path=org/base {where}.adapter={adapter}"
    expected = f"this is a PEFT adapter for org/base, not a model: {remedy}"
    settings = {
        "policy": policy,
        "reference": reference,
        "tokenizer": None,
        "stages": ["score"],
        "data": {"sft": [], "train": [], "eval": [ids_file(tmp_path)]},
    }
    with pytest.raises(ConfigError, match=expected):
        plan_of(tmp_path, **settings)
    assert main(["--config", str(write_config(tmp_path, **settings))]) == 1
    message = capsys.readouterr().err
    assert expected in message and message.count("\n") == 1


def test_an_adapter_beside_the_model_is_not_passed_over(plain, tmp_path, capsys):
    """transformers, with PEFT, would put it onto the model."""
    both = tmp_path / "both"
    shutil.copytree(plain, both)
    (both / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    )
    settings = {"policy": {"config": None, "path": str(both)}, "tokenizer": None, "stages": ["export"]}
    with pytest.raises(ConfigError, match="adapter_config.json. lies beside the model.*policy.adapter="):
        plan_of(tmp_path, **settings)
    assert main(["--config", str(write_config(tmp_path, **settings))]) == 1
    assert "lies beside the model" in capsys.readouterr().err


def plan_of(directory, **settings):
    return make_plan_text(load_config(str(write_config(directory, **settings)), [])[0])


def ids_file(directory):
    """Three pairs of token ids."""
    path = directory / "ids.jsonl"
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [5]}
    path.write_text("".join(json.dumps(pair | {"prompt_ids": [1, n]}) + "\n" for n in range(3)))
    return {"path": str(path)}


# ---------------------------------------------------------------- the tokens that end an answer


@pytest.mark.parametrize("config", [None, 2, [2, 3]])
@pytest.mark.parametrize(
    "generation", ["none", {}, {"temperature": 0.5}, {"eos_token_id": 4}, {"eos_token_id": [1, 4]}]
)
def test_answers_end_where_those_of_transformers_end(plain, tmp_path, config, generation):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    change_json(tmp_path / "config.json", eos_token_id=config)
    if generation != "none":
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    theirs = theirs_of(tmp_path).generation_config.eos_token_id
    ours = end_tokens(read_config(tmp_path), read_generation_config(tmp_path))
    assert ours == (theirs if isinstance(theirs, list) else [] if theirs is None else [theirs])


@pytest.mark.parametrize("value", ["2", [1, "2"], True, 1.0, {"a": 1}])
def test_an_end_token_that_is_no_id_is_named(value):
    with pytest.raises(UserError, match="generation_config.json: eos_token_id: expected a token id"):
        end_tokens({}, {"eos_token_id": value})


def test_a_generation_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match="generation_config.json: no valid JSON"):
        read_generation_config(tmp_path)


@pytest.mark.slow
def test_every_end_token_ends_what_is_generated(tmp_path):
    """A flat model draws each id; those of generation_config.json and the tokenizer's EOS end an answer.

    The one that config.json names does not.
    """
    generation = {"eos_token_id": [5, 9]}
    model = make_checkpoint(
        tmp_path / "model",
        SHAPE | {"vocab_size": 264, "eos_token_id": 7},
        generation=generation,
        tokenizer=make_tokenizer(),
    )
    tensors = load_file(model / "model.safetensors")
    flat = {name: x if "norm" in name else torch.zeros_like(x) for name, x in tensors.items()}
    save_file(flat, model / "model.safetensors", {"format": "pt"})
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(json.dumps({"prompt": "ab"}) + "\n")
    output = run(
        tmp_path,
        "objective={kind: dpo}",
        stages=["generate"],
        policy={"config": None, "path": str(model)},
        tokenizer=None,
        data={"sft": [], "train": [], "eval": [], "prompts": [{"path": str(rows)}]},
        generation={"samples": 128, "max_new_tokens": 50, "batch_size": 8},
    )
    samples = lines_of(output / "generations.jsonl")[0]["samples"]
    lasts = {sample["token_ids"][-1] for sample in samples if sample["finish"] == "eos"}
    assert lasts == {5, 9, IM_END}
    before = set().union(*(sample["token_ids"][:-1] for sample in samples))
    assert 7 in before and not {5, 9, IM_END} & before


# ---------------------------------------------------------------- stop strings


def written(tokenizer, text, stop):
    """(tokens that are kept, text) of a response that would be `text`."""
    ids = np.array(tokenizer.encode(text, add_special_tokens=False))
    cut = stop_within(ids, StopStrings(stop, tokenizer), tokenizer)
    if cut is None:
        return None
    length, kept_text = cut
    return tokenizer.decode(ids[:length]), kept_text


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("fine<|im_end|>\nmore", ("<|im_end|>",), ("fine<|im_end|>", "fine")),
        ("fine\n<|im_end|>", ("\n<|im_end|>",), ("fine\n<|im_end|>", "fine")),
        (
            "fine<|im_end|>\n<|im_start|>user",
            ("<|im_end|>\n<|im_start|>",),
            ("fine<|im_end|>\n<|im_start|>", "fine"),
        ),
        ("a<|im_start|>b, then", (", ", "<|im_end|>"), ("a<|im_start|>b, ", "ab")),
        ("<|im_end|>", ("<|im_end|>",), ("<|im_end|>", "")),
        ("a|b<|im_end|>", ("<|im_end|>", "|"), ("a|", "a")),
        ("a<|im_end|>b", ("|", "im_end", "<"), None),
        ("été<|im_end|>", ("<|im_end|>",), ("été<|im_end|>", "été")),
    ],
)
def test_a_special_token_is_a_stop_string(text, stop, kept):
    """A stop string that holds no special token is not looked for within the names of those."""
    tokenizer = make_tokenizer()
    assert written(tokenizer, text, stop) == kept
    if kept is not None:
        prompt = np.array(tokenizer.encode("<|im_end|>Say,  | <|im_start|>", add_special_tokens=False))
        ids = np.array(tokenizer.encode(kept[0], add_special_tokens=False))
        assert continuation(prompt, Generated(0, 0, ids, kept[1], "stop"), tokenizer, stop) == kept[1]


# ---------------------------------------------------------------- more tokens than the model has rows


MORE = tuple(f"<|extra_{n}|>" for n in range(8))  # 259 .. 266, where the model has 264 rows


def chat_run(directory, model, content, **changes):
    rows = directory / "rows.jsonl"
    pair = {"prompt": f"Say {content}", "chosen": "yes", "rejected": "no"}
    rows.write_text("".join(json.dumps(pair | {"prompt": f"{n} {pair['prompt']}"}) + "\n" for n in range(3)))
    settings = {
        "stages": ["inspect"],
        "policy": {"config": None, "path": str(model)},
        "tokenizer": None,
        "data": {"sft": [], "train": [{"path": str(rows)}], "eval": []},
    } | changes
    return write_config(directory, **settings)


def test_tokens_without_a_row_are_refused_only_where_a_row_has_them(tmp_path, capsys):
    model = make_checkpoint(tmp_path / "model", tokenizer=make_tokenizer(*MORE))
    good = chat_run(tmp_path, model, "<|extra_4|>")
    assert main(["--config", str(good), "--check"]) == 0 and main(["--config", str(good)]) == 0
    bad = chat_run(tmp_path, model, "<|extra_5|>")
    assert main(["--config", str(bad), "--check"]) == 0
    capsys.readouterr()
    assert main(["--config", str(bad)]) == 1
    message = capsys.readouterr().err
    assert "rows.jsonl:1: token id 264 ('<|extra_5|>') is outside the model's vocabulary of 264" in message
    assert message.count("\n") == 1
    assert main(["--config", str(bad), "data.on_bad_row=skip"]) == 1
    assert "no usable row" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["policy.path", "tokenizer.path"])
def test_a_tokenizer_without_its_vocabulary_is_a_mistake_of_the_check(tmp_path, capsys, setting):
    model = make_checkpoint(tmp_path / "model", tokenizer=make_tokenizer())
    chosen = {} if setting == "policy.path" else {"tokenizer": {"kind": "pretrained", "path": str(model)}}
    config = chat_run(tmp_path, model, "it", **chosen)
    assert main(["--config", str(config), "--check"]) == 0
    (model / "tokenizer.json").unlink()
    for options in (["--check"], []):
        assert main(["--config", str(config), *options]) != 0
        assert "the tokenizer's vocabulary is missing, as after a download" in capsys.readouterr().err
    if chosen:
        assert main(["--config", str(config), "--check", f"tokenizer.path={model / 'config.json'}"]) != 0
        assert f"a file; expected the directory of a tokenizer, so {model}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("generation", "stop", "says"),
    [(None, [], True), ({"eos_token_id": [256, IM_END]}, [], False), (None, ["<|im_end|>"], False)],
)
def test_answers_that_nothing_ends_are_said(tmp_path, capsys, generation, stop, says):
    """ChatML on a base model, whose end of text is another token than that of a turn."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = END
    model = make_checkpoint(tmp_path / "model", SHAPE | {"eos_token_id": 256}, generation=generation)
    tokenizer.save_pretrained(model)
    rows = tmp_path / "talks.jsonl"
    talk = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "yes"}]
    rows.write_text(json.dumps({"messages": talk}) + "\n")
    data = {"sft": [{"path": str(rows)}], "train": [], "eval": []}
    config = chat_run(tmp_path, model, "it", stages=["sft"], data=data)
    assert main(["--config", str(config), "sft.steps=1", f"generation.stop={json.dumps(stop)}"]) == 0
    line = f"answers hold none of the tokens that end what the policy writes ({END}): the first ends in "
    assert (f"{line}'<|im_end|>', behind which it will write on" in capsys.readouterr().out) == says


def test_tokens_without_a_row_do_not_part_policy_and_reference(tmp_path, capsys):
    """What matters are the tokens that both have rows for."""
    model = make_checkpoint(tmp_path / "model", tokenizer=make_tokenizer(*MORE))
    other = make_checkpoint(tmp_path / "other", tokenizer=make_tokenizer(*MORE[:5], "<|elsewhere|>"))
    config = chat_run(tmp_path, model, "it", stages=["score"], reference={"path": str(other)})
    content = config.read_text().replace("eval: []", "eval: [{path: %s}]" % (tmp_path / "rows.jsonl"))
    config.write_text(content)
    assert main(["--config", str(config), "objective={kind: dpo}"]) == 0
    make_tokenizer("<|elsewhere|>").save_pretrained(other)
    assert main(["--config", str(config), "objective={kind: dpo}", f"output_dir={tmp_path / 'again'}"]) == 1
    assert "token '<|elsewhere|>' is None and 259" in capsys.readouterr().err


def test_a_made_tokenizer_needs_its_rows_at_the_check_and_in_the_run(tmp_path, capsys):
    settings = {
        "stages": ["export"],
        "tokenizer": {"kind": "bytes"},
        "policy": {"config": GPT2 | {"vocab_size": 256}},
    }
    config = str(write_config(tmp_path, **settings))
    assert main(["--config", config, "--check"]) == 2 and "257 tokens" in capsys.readouterr().err
    assert main(["--config", config]) == 1 and "257 tokens" in capsys.readouterr().err


# ---------------------------------------------------------------- the type of the weights


@pytest.mark.parametrize(
    ("types", "config_dtype", "expected"),
    [
        ({"": torch.bfloat16}, "bfloat16", "bfloat16"),
        ({"": torch.bfloat16}, None, "bfloat16"),
        ({"": torch.float16}, "float32", "float16"),
        ({"": torch.float64}, None, "float32"),
        ({"": torch.bfloat16, "norm": torch.float32}, "bfloat16", "bfloat16"),
        ({"": torch.bfloat16, "norm": torch.float32}, "float32", "float32"),
        ({"": torch.bfloat16, "mask": torch.float32}, None, "bfloat16"),
    ],
)
def test_the_type_of_a_checkpoint(plain, tmp_path, types, config_dtype, expected):
    shutil.copy(plain / "config.json", tmp_path)
    change_json(tmp_path / "config.json", dtype=config_dtype)
    tensors = load_file(plain / "model.safetensors") | {"common_mask.mixer.weight": torch.ones(1, 2)}
    if "mask" not in types:
        del tensors["common_mask.mixer.weight"]

    def type_of(name):
        return next(types[part] for part in ("mask", "norm", "") if part in types and part in name)

    cast = {name: x.to(type_of(name)) for name, x in tensors.items()}
    save_file(cast, tmp_path / "model.safetensors", {"format": "pt"})
    assert SafeTensors(tmp_path).dtype() == expected


def exported(directory, model, *overrides, **changes):
    settings = {
        "stages": ["export"],
        "policy": {"config": None, "path": str(model)},
        "tokenizer": None,
    } | changes
    return run(directory, *overrides, **settings) / "export"


SETTINGS = {
    "eos_token_id": [256, IM_END, 3],
    "bos_token_id": 257,
    "pad_token_id": 256,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "max_new_tokens": 99,
    "transformers_version": "4.40.0",
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_all_of_it_comes_back(tmp_path, dtype, tied):
    """Bit for bit: transformers -> ours -> transformers."""
    from transformers import AutoTokenizer

    shape = SHAPE | {"tie_word_embeddings": tied, "pretraining_tp": 1}
    model = make_checkpoint(
        tmp_path / "model",
        shape,
        dtype=getattr(torch, dtype),
        generation=SETTINGS,
        tokenizer=make_tokenizer(*MORE[:2]),
    )
    (model / "preprocessor_config.json").write_text('{"of": "a processor"}')
    out = exported(tmp_path, model)
    before, after = theirs_of(model), theirs_of(out)
    assert str(after.dtype) == f"torch.{dtype}"
    assert {name: x.dtype for name, x in load_file(out / "model.safetensors").items()} == {
        name: x.dtype for name, x in load_file(model / "model.safetensors").items()
    }
    assert (out / "model.safetensors").stat().st_size <= 1.02 * (model / "model.safetensors").stat().st_size
    assert all(torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items())
    assert after.generation_config.to_dict() == before.generation_config.to_dict()
    assert read_config(out) == read_config(model)
    ours, theirs = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(model)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template == TEMPLATE
    assert ours.get_vocab() == theirs.get_vocab() and (out / "preprocessor_config.json").exists()
    again = exported(tmp_path / "again", out)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_names_that_config_json_has_used_come_back(tmp_path):
    """The older name of the type, and several chat templates in tokenizer_config.json.

    No generation_config.json is made up where there was none.
    """
    from transformers import AutoTokenizer

    model = make_checkpoint(tmp_path / "model", dtype=torch.bfloat16, tokenizer=make_tokenizer())
    change_json(model / "config.json", dtype=None, torch_dtype="bfloat16", _name_or_path="org/first")
    (model / "chat_template.jinja").unlink()
    templates = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools"}]
    change_json(model / "tokenizer_config.json", chat_template=templates)
    out = exported(tmp_path, model)
    assert read_config(out) == read_config(model) and not (out / "generation_config.json").exists()
    assert theirs_of(out).generation_config.to_dict() == theirs_of(model).generation_config.to_dict()
    expected = {entry["name"]: entry["template"] for entry in templates}
    assert AutoTokenizer.from_pretrained(out).chat_template == expected


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (256, None, ([256, IM_END], None)),
        (256, {"eos_token_id": [256, 1]}, ([256, IM_END], [256, 1, IM_END])),
        (IM_END, {"temperature": 0.5}, (IM_END, IM_END)),
        (None, {"eos_token_id": IM_END}, (IM_END, IM_END)),
    ],
)
def test_what_training_ends_answers_with_is_among_the_exported_end_tokens(
    tmp_path, config, generation, expected
):
    model = make_checkpoint(tmp_path / "model", SHAPE, generation=generation, tokenizer=make_tokenizer())
    change_json(model / "config.json", eos_token_id=config)
    out = exported(tmp_path, model)
    kept = read_generation_config(out)
    assert (read_config(out)["eos_token_id"], kept and kept["eos_token_id"]) == expected
    assert generation is None or {**kept, "eos_token_id": 0} == {**generation, "eos_token_id": 0}


def test_the_type_of_the_export_can_be_chosen(tmp_path, capsys):
    model = make_checkpoint(tmp_path / "model", dtype=torch.bfloat16, tokenizer=make_tokenizer())
    out = exported(tmp_path, model, "export.dtype=float16")
    assert str(theirs_of(out).dtype) == "torch.float16" and read_config(out)["dtype"] == "float16"
    assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {torch.float16}
    assert str(theirs_of(exported(tmp_path, model, "export.dtype=float32")).dtype) == "torch.float32"
    tensors = load_file(model / "model.safetensors")
    too_large = {name: x + 1e5 if "embed" in name else x for name, x in tensors.items()}
    save_file(too_large, model / "model.safetensors", {"format": "pt"})
    before = (out / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["--config", str(tmp_path / "config.yaml"), "export.dtype=float16"]) == 1
    assert "too large for float16" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before


def test_a_model_from_scratch_is_exported_in_float32(tmp_path):
    out = run(tmp_path, stages=["export"]) / "export"
    assert str(theirs_of(out).dtype) == "torch.float32" and theirs_of(out).generation_config.eos_token_id == 0
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(out).eos_token == END


def test_shards_come_back_as_shards_and_left_over_files_go(plain, tmp_path):
    """A directory that was exported to before, in one file and with another type."""
    spec, _, weights = load_ours(plain)
    config, out = read_config(plain), tmp_path / "out"
    arrays = {path: np.asarray(x) for path, x in weights.items()}
    save_hf(out, spec, config, arrays, {}, "", generation={"eos_token_id": 3})
    save_hf(out, spec, config, arrays, {}, "", dtype="bfloat16", shard_bytes=3000)
    names = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(names) > 2 and "model.safetensors" not in names
    assert not (out / "generation_config.json").exists()
    assert all(path.stat().st_size < 6000 for path in out.glob("*.safetensors"))
    for name, x in theirs_of(plain).state_dict().items():
        torch.testing.assert_close(theirs_of(out).state_dict()[name], x.to(torch.bfloat16), rtol=0, atol=0)
    assert SafeTensors(out).dtype() == "bfloat16"
    save_hf(out, spec, config, arrays, {}, "")
    assert sorted(path.name for path in out.glob("*.safetensors*")) == ["model.safetensors"]


# ---------------------------------------------------------------- what must not be written over


@pytest.mark.parametrize(
    "how", ["itself", "slash", "relative", "link", "parent of adapter", "tokenizer", "reference", "default"]
)
def test_an_export_over_what_the_run_reads_is_refused(plain, tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / {"default": "run/export", "parent of adapter": "model/adapter"}.get(how, "model")
    shutil.copytree(plain, target)
    (tmp_path / "link").symlink_to(target)
    settings = {"stages": ["export"], "policy": {"config": None, "path": str(target)}, "tokenizer": None}
    if how in ("tokenizer", "reference"):
        settings["policy"] = {"config": None, "path": str(plain)}
        settings |= (
            {"reference": {"path": "model"}}
            if how == "reference"
            else {"tokenizer": {"kind": "pretrained", "path": "model/"}}
        )
    path = {"slash": f"{target}/", "relative": "link/../model/.", "link": "link", "default": None}.get(
        how, str(tmp_path / "model")
    )
    config = str(write_config(tmp_path, **settings, export={"path": path}))
    names = sorted(tmp_path.rglob("*"))
    for arguments in (["--check"], []):
        assert main(["--config", config, *arguments]) == 2
        message = capsys.readouterr().err
        assert "export.path: " in message and "would be written over" in message
    assert sorted(tmp_path.rglob("*")) == names


def test_an_export_within_the_model_s_directory_is_none_of_its_files(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    run(
        tmp_path,
        stages=["export"],
        policy={"config": None, "path": str(tmp_path / "model")},
        tokenizer=None,
        export={"path": str(tmp_path / "model" / "tuned")},
    )
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "model" / "tuned" / "config.json").exists()
