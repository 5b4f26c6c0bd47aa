"""The policy as a model of lm-evaluation-harness, against the harness's own (HFLM) on the same checkpoint:
float32, CPU."""

import json
import sys

import jax
import pytest
from ruamel.yaml import YAML
from tokenizers.processors import TemplateProcessing

from helpers import program
from helpers.parity import make_theirs
from helpers.quick import slow_but
from helpers.tiny import GPT2, LLAMA
from sparsepo_jax.config.load import load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.stop import Stop
from sparsepo_jax.data.tokenizers import train_bpe_tokenizer
from sparsepo_jax.generate.sampler import Sampling
from sparsepo_jax.main import main
from sparsepo_jax.report.table import task_rows
from sparsepo_jax.stages.context import Run
from sparsepo_jax.stages.harness import make_harness_model

pytest.importorskip("lm_eval", reason="pip install -e '.[lm_eval]'")
from sparsepo_jax.eval.harness import grouped, table_of

POSITIONS = 48
TEXTS = [
    "The cat sat on the mat and the dog sat on the cat.",
    "A naïve café in 東京: tea, cake, and a cat 🙂 sat there.",
    "What is the capital of the sea? The whale, the whale!",
]
LONG = " ".join(TEXTS * 3)
PAIRS = [
    ("The cat", " sat on the mat"),
    ("The cat", " dog"),
    ("The cat sat on ", "the mat"),
    ("", "The whale"),
    ("", "a"),
    ("The café", " in 東京 🙂"),
    ("東京", "🙂"),
    (LONG, " the whale, the whale"),
    (LONG, " cat"),
    (LONG + " and the", " dog sat on the cat"),
    ("A", LONG[:60]),
    ("The cat", " sat"),
    *[
        ("The cat sat on the mat and the dog sat on the cat. What is", choice)
        for choice in (" tea", " cake", " the sea", " the capital of the whale", " 東京")
    ],
]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module", params=slow_but(["gpt2"], ["gpt2", "llama"]))
def checkpoint(request, tmp_path_factory):
    """A random model and a BPE tokenizer that makes several tokens a word; Llama's puts a BOS of its own
    before every text."""
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = train_bpe_tokenizer(TEXTS, 340)
    config = (
        (GPT2 | {"n_positions": POSITIONS})
        if request.param == "gpt2"
        else (LLAMA | {"max_position_embeddings": POSITIONS})
    )
    if request.param == "llama":
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    ids = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "initializer_range": 0.4,
    }
    make_theirs(config | ids).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(checkpoint):
    """(ours on a mesh of 8 devices, the harness's)."""
    from lm_eval.models.huggingface import HFLM

    path = program.write_config(
        checkpoint / "ours",
        stages=["harness"],
        policy={"path": str(checkpoint), "config": None},
        tokenizer={"kind": "auto"},
        harness={"tasks": ["none"], "batch_size": 8},
        data={"buckets": 1},
        objective=None,
    )
    run = Run(load_config(str(path), [])[0], Stop())
    with jax.set_mesh(run.mesh):
        # With its cache of logits, HFLM 0.4.13 takes the wrong columns where one of two equal texts is cut
        # elsewhere (PAIRS 0 and 2).
        yield (
            make_harness_model(run),
            HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=3, logits_cache=False),
        )


def requests(kind: str, arguments: list[tuple]):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=of_request, idx=n)
        for n, of_request in enumerate(arguments)
    ]


def test_continuations_get_the_same_numbers(models):
    """Empty contexts, spaces between, several tokens, Unicode, contexts that are too long; contexts shared
    by 5 and by 2; a number that no batch divides."""
    ours, theirs = (model.loglikelihood(requests("loglikelihood", PAIRS)) for model in models)
    for pair, (logp, greedy), (expected, also) in zip(PAIRS, ours, theirs, strict=True):
        assert logp == pytest.approx(expected, abs=1e-4), pair
        assert greedy == also, pair


def test_continuations_of_a_long_context_share_its_row():
    """Five in rows of four and one; not where they are longer than their context."""
    long, short = list(range(12)), [1]
    pairs = [(long, [n]) for n in range(5)] + [
        (short, [2]),
        (short, [3]),
        (long[1:], [4] * 6),
        (long[1:], [5] * 5),
        (long[1:], [6] * 7),
    ]
    assert grouped(pairs) == {4: [[0, 1, 2, 3]], 2: [[7, 8]], 1: [[4], [5], [6], [9]]}


def test_what_the_model_would_write_is_greedy(models):
    """A continuation of its own tokens, and the same with another last token."""
    ours, theirs = models
    context = ours.tok_encode("The cat")
    written = greedy_tokens(theirs, context, 4)
    other = [*written[:-1], (written[-1] + 1) % 256]
    asked = [(None, context, written), (None, context, other)]
    for model in (ours, theirs):
        answers = model._loglikelihood_tokens(asked, disable_tqdm=True)
        assert [greedy for _, greedy in answers] == [True, False]


def greedy_tokens(theirs, context: list[int], count: int) -> list[int]:
    import torch

    ids = list(context)
    for _ in range(count):
        ids.append(int(theirs._model_call(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(context) :]


def test_a_continuation_without_a_token_of_its_own_is_said(models):
    """The tokenizer has one token for the two; and one that is too long."""
    for pair, message in (
        (("東", "京"), "continuation of '.*東' has no token of its own"),
        (("The", LONG), f"does not fit {POSITIONS}"),
    ):
        with pytest.raises(UserError, match=message):
            models[0].loglikelihood(requests("loglikelihood", [pair]), disable_tqdm=True)


def test_rolling_windows_get_the_same_numbers(models):
    """A text shorter than the model's positions, one of several windows, one of Unicode."""
    texts = [(TEXTS[0],), (LONG,), (TEXTS[1],), ("a",)]
    ours, theirs = (model.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for model in models)
    assert ours == pytest.approx(theirs, abs=1e-3)  # sums over up to 150 tokens of 5 nats
    assert len(models[0].tok_encode(LONG)) > 2 * POSITIONS


def test_answers_are_the_same_strings(models):
    """Contexts of many lengths, one too long; stop strings of several characters, within a token, and of
    none that occurs."""
    contexts = [*TEXTS, LONG, "The", "東京", "A naïve", "dog", "the whale, the"]
    ours, theirs = models

    def ask(model, **kwargs):
        gen_kwargs = {"max_gen_toks": 12, "do_sample": False, **kwargs}
        return model.generate_until(requests("generate_until", [(text, gen_kwargs) for text in contexts]))

    free = ask(theirs, until=[])
    assert ask(ours, until=[]) == free
    written = ours._answer(
        table_of([ours.tok_encode(c)[-36:] for c in contexts], [[]] * len(contexts)),
        Sampling(12, temperature=0.0),
    )
    pieces = [ours.tok_decode([token]) for generated in written for token in generated.ids]
    within = next(piece for piece in pieces if len(piece) > 2)
    stops = [within[1], free[0][4:6], "no such string"]
    cut = ask(theirs, until=stops)
    assert ask(ours, until=stops) == cut != free and any(text.endswith(within[0]) for text in cut)


@pytest.mark.parametrize("checkpoint", ["gpt2"], indirect=True)
def test_draws_follow_temperature_and_request(models):
    ours, _ = models

    def ask(**kwargs):
        gen_kwargs = {"max_gen_toks": 12, "until": [], **kwargs}
        return ours.generate_until(requests("generate_until", [("The cat", gen_kwargs)] * 3))

    greedy, drawn = ask(do_sample=False, temperature=1.5), ask(do_sample=True, temperature=1.5)
    assert len(set(greedy)) == 1 and len(set(drawn)) == 3, "each request has its own draws"
    assert ask(temperature=1.5) == drawn


def test_generation_settings_become_ours(models):
    """A stop string that is a special token, which text does not show, ends an answer as EOS does."""
    ours, _ = models
    special = ours.tokenizer.bos_token
    asked = {
        "until": [special, "\n", ""],
        "max_new_tokens": 5,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 3,
        "num_beams": 1,
    }
    assert ours._sampling(asked) == Sampling(
        5, 0.7, 3, 0.9, ends=(ours.tokenizer.bos_token_id,), stop=("\n",)
    )
    assert ours._sampling({"until": "a", "do_sample": True}) == Sampling(256, 1.0, stop=("a",))
    assert ours._sampling({"until": ["a"]}).temperature == 0.0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"num_beams": 4}, "num_beams=4, which is not supported"), ({"max_gen_toks": 48}, "asks for 48 tokens")],
)
def test_what_cannot_be_asked_is_said(models, kwargs, message):
    with pytest.raises(UserError, match=message):
        models[0].generate_until(
            requests("generate_until", [("The", {"until": [], "num_beams": 1} | kwargs)])
        )


def test_chats_are_written_as_the_harness_writes_them(models):
    """Its template refuses system messages; the later cases let the model go on with a message that is begun,
    also where the template writes the same letters behind it, or trims it."""
    system, user, begun = (
        {"role": role, "content": text}
        for role, text in (("system", "Be kind."), ("user", "Hi"), ("assistant", "Well, "))
    )
    begun = [begun | {"content": text} for text in ("Well, ", "  e", "s", "\n", "```python\n")]
    chats = [([user], True), ([system, user], True), *(([system, user, last], False) for last in begun)]
    for chat, generate in chats:
        ours, theirs = (
            model.apply_chat_template(list(chat), add_generation_prompt=generate) for model in models
        )
        assert ours == theirs
    assert models[0].chat_template(True) == TEMPLATE


def test_a_message_that_a_template_does_not_write_is_said(models, monkeypatch):
    monkeypatch.setattr(models[0], "_render", lambda *_: "Hi")
    with pytest.raises(UserError, match=r"does not write the message that the model is to go on with \('We"):
        models[0].apply_chat_template([{"role": "assistant", "content": "Well"}], add_generation_prompt=False)


# ---------------------------------------------------------------- whole tasks


def write_task(directory, name: str, **changes):
    rows = [
        {
            "question": f"The {a} and the {b} sat on the",
            "choices": [a, b, "whale, the whale"],
            "answer": n % 3,
        }
        for n, (a, b) in enumerate(
            [
                ("cat", "dog"),
                ("dog", "sea"),
                ("mat", "cat"),
                ("cake", "tea"),
                ("sea", "mat"),
                ("dog", "cake"),
                ("tea", "cat"),
            ]
        )
    ]
    (directory / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    files = {split: str(directory / "rows.json") for split in ("train", "test")}
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(directory / "cache")},
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 3.0},
    } | changes
    path = directory / f"{name}.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({key: value for key, value in task.items() if value is not None}, file)
    return path


WRITES = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["a"], "max_gen_toks": 6},
    "doc_to_choice": None,
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.mark.parametrize("checkpoint", ["gpt2"], indirect=True)
def test_the_stage_gives_the_figures_of_the_harness_itself(checkpoint, tmp_path, capsys, monkeypatch):
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = [str(write_task(tmp_path, "animals")), str(write_task(tmp_path, "written", **WRITES))]
    settings = {
        "tasks": tasks,
        "batch_size": 8,
        "num_fewshot": 1,
        "limit": 6,
        "gen_kwargs": {"max_gen_toks": 4},
        "max_length": 40,
    }
    # The default objective has masks, and this checkpoint none: the policy alone must do.
    out = program.run(
        tmp_path,
        stages=["harness", "report"],
        policy={"path": str(checkpoint), "config": None},
        tokenizer={"kind": "auto"},
        data=None,
        harness=settings,
    )
    found = json.loads((out / "harness.json").read_text())
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # seconds of looking at this machine
    theirs = evaluator.simple_evaluate(
        HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4, max_length=40),
        tasks=tasks,
        num_fewshot=1,
        limit=6,
        gen_kwargs={"max_gen_toks": 4},
        task_manager=TaskManager(include_defaults=False),
    )
    figures = {name: x for name, x in theirs["results"]["animals"].items() if name.startswith("acc")}
    assert len(figures) == 4 and 0 < figures["acc,none"] < 1
    assert {name: found["results"]["animals"][name] for name in figures} == pytest.approx(figures)
    assert found["results"]["written"]["exact_match,none"] == theirs["results"]["written"]["exact_match,none"]
    assert (
        found["versions"]["animals"] == 3.0
        and found["n-samples"]["animals"] == {"original": 7, "effective": 6}
        and found["n-shot"]["animals"] == 1
    )
    printed = capsys.readouterr().out
    assert "animals" in printed and f"{figures['acc,none']:.3f}" in printed
    assert [(row.task, row.metric, row.rows) for row in task_rows(found)] == [
        ("animals", "acc", 6),
        ("animals", "acc_norm", 6),
        ("written", "exact_match", 6),
    ]
    page = (out / "report.html").read_text()
    assert "animals" in page and f"{figures['acc,none']:.3f}" in page
    assert (
        main(["--config", str(tmp_path / "config.yaml"), "stages=[harness]"]) == 0
        and "harness: finished before" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_adapters_are_evaluated_on_their_base(tmp_path):
    """The perplexity of the run's adapters, of the merged export, and of the base alone, which is another."""
    perplexity = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "doc_to_choice": None,
        "metric_list": None,
    }
    harness = {
        "tasks": [str(write_task(tmp_path, "text", **perplexity))],
        "batch_size": 8,
        "limit": 3,
        "bootstrap_iters": 0,
    }
    shape = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 64}
    po = {
        "lora": {"rank": 2},
        "steps": 2,
        "batch_size": 8,
        "optimizer": {"kind": "adamw", "learning_rate": 0.3},
    }
    rows = [{"prompt": "The cat", "chosen": f" sat {n}", "rejected": f" ate {n}"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"sft": [], "train": [{"path": str(tmp_path / "pairs.jsonl")}], "eval": []}
    byte = {"policy": {"config": shape}, "tokenizer": {"kind": "bytes"}, "harness": harness}
    out = program.run(tmp_path, stages=["po", "export", "harness"], po=po, data=data, **byte)
    merged = program.run(
        tmp_path / "merged",
        stages=["harness"],
        policy={"path": str(out / "export"), "config": None},
        tokenizer={"kind": "auto"},
        data=None,
        harness=harness,
    )
    base = program.run(tmp_path / "base", stages=["harness"], data=None, **byte)
    adapted, whole, alone = (
        json.loads((path / "harness.json").read_text())["results"]["text"]["bits_per_byte,none"]
        for path in (out, merged, base)
    )
    assert adapted == pytest.approx(whole, rel=1e-5) and abs(adapted - alone) > 1e-3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("code", {"unsafe_code": True}, "harness.tasks: code runs what the model writes"),
        (
            "remote",
            {
                "metric_list": [
                    {"metric": "no_metric_of_its_own", "aggregation": "mean", "higher_is_better": True}
                ]
            },
            "it would be code from the Hub",
        ),
        (
            "far",
            {"dataset_path": "someone/rows", "dataset_kwargs": None},
            "a task or its data set cannot be had",
        ),
    ],
)
@pytest.mark.parametrize("checkpoint", ["gpt2"], indirect=True)
def test_a_task_that_cannot_run_is_one_line(checkpoint, tmp_path, capfd, name, changes, message):
    task = write_task(tmp_path, name, **changes)
    config = program.write_config(
        tmp_path,
        stages=["harness"],
        policy={"path": str(checkpoint), "config": None},
        tokenizer={"kind": "auto"},
        data=None,
        harness={"tasks": [str(task)], "batch_size": 8},
    )
    assert main(["--config", str(config)]) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_without_the_extra_the_command_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith(("lm_eval.", "sparsepo_jax.eval.harness"))]:
        monkeypatch.delitem(sys.modules, name)
    config = program.write_config(tmp_path, stages=["harness"], harness={"tasks": ["animals"]}, data=None)
    assert main(["--config", str(config)]) == 1
    assert "stage harness: needs the extra lm_eval" in capsys.readouterr().err


@pytest.mark.slow
def test_a_name_that_no_task_has_gets_the_nearest(tmp_path):
    from sparsepo_jax.eval.harness_tasks import load_tasks

    write_task(tmp_path, "animals")
    with pytest.raises(
        UserError, match="harness.tasks: animols is neither a task of lm_eval .* did you mean animals"
    ):
        load_tasks(["animols"], str(tmp_path))
