"""The push to the Hub: asked about first, done last, with a card; what fails loses nothing."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from ruamel.yaml import YAML

from helpers.program import run, write_config
from sparsepo_jax.config.load import ConfigError, load_config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.main import main
from sparsepo_jax.report.card import Origin, Parts, _as_code, make_card
from sparsepo_jax.run.check import make_plan_text
from sparsepo_jax.run.places import place_mistakes
from sparsepo_jax.run.sweep import parse_axes, plan_sweep
from sparsepo_jax.stages import hub

CHANGES = {"stages": ["export"], "export": {"hub": "films/liked"}, "sft": None}


class FakeHub:
    """A Hub with repositories by name: (private, files). `broken`: calls that raise."""

    def __init__(self):
        self.repositories: dict[str, tuple[bool, dict[str, str]]] = {}
        self.broken: dict[str, Exception] = {}
        self.role = "write"
        self.owners = ["films"]
        self.calls: list[str] = []

    def __call__(self, token):
        assert token == "hf_x"
        return self

    def _called(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise self.broken[name]

    def whoami(self):
        self._called("whoami")
        return {
            "name": "me",
            "orgs": [{"name": owner} for owner in self.owners],
            "auth": {"accessToken": {"role": self.role}},
        }

    def repo_exists(self, name):
        return name in self.repositories

    def repo_info(self, name):
        return SimpleNamespace(private=self.repositories[name][0])

    def create_repo(self, name, private, exist_ok):
        self._called("create_repo")
        assert exist_ok
        self.repositories.setdefault(name, (private, {}))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self._called("upload_folder")
        below = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        files = {str(path.relative_to(folder_path)): path.read_bytes() for path in below}
        self.repositories[repo_id][1].update(files)


@pytest.fixture
def hub_service(monkeypatch):
    importlib.import_module("transformers.utils.hub")  # names HfApi in its annotations: before it is replaced
    service = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", service)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return service


def front_matter(card: str) -> dict:
    return YAML(typ="safe").load(card.split("---\n")[1])


@pytest.mark.slow
def test_the_export_is_pushed_when_all_is_done_and_only_once(tmp_path, hub_service, capsys):
    """Export stands before eval in the list: the card has the figures all the same. Kills: a push in the
    middle; a push with each start; one that is public without being asked for."""
    changes = CHANGES | {"stages": ["po", "export", "eval"], "po": {"steps": 1}}
    output = run(tmp_path, **changes)
    private, files = hub_service.repositories["films/liked"]
    assert private and {"README.md", "config.json", "model.safetensors", "masks.safetensors"} <= files.keys()
    card = files["README.md"].decode()
    assert card == (output / "export" / "README.md").read_text()
    matter = front_matter(card)
    assert matter["library_name"] == "transformers" and "sparsepo" in matter["tags"]
    assert 'AutoModelForCausalLM.from_pretrained("films/liked")' in card
    summary = json.loads((output / "summary.json").read_text())
    for text in (summary["words"], f"{summary['after']['margin']:.3f}", "mask sparsity", "It is largest"):
        assert text in card
    capsys.readouterr()
    run(tmp_path, **changes)
    assert "export: pushed before, https://huggingface.co/films/liked" in capsys.readouterr().out
    assert hub_service.calls == ["whoami", "create_repo", "upload_folder", "whoami"]


@pytest.mark.parametrize(
    "harm, says",
    [
        (
            lambda service, patch: patch.setattr(huggingface_hub, "get_token", lambda: None),
            "there is no token",
        ),
        (
            lambda service, patch: service.broken.update(whoami=ConnectionError("no route to host")),
            "the Hub cannot be asked about films/liked (no route to host)",
        ),
        (lambda service, patch: setattr(service, "role", "read"), "the token of me may only read"),
        (
            lambda service, patch: setattr(service, "owners", ["mylab"]),
            "the token of me cannot write to films: expected one of me, mylab before the slash",
        ),
        (
            lambda service, patch: service.repositories.update({"films/liked": (False, {})}),
            "films/liked is there already and public",
        ),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_done(
    tmp_path, hub_service, monkeypatch, capsys, harm, says
):
    harm(hub_service, monkeypatch)
    assert main(["--config", str(write_config(tmp_path, **CHANGES))]) == 1
    error = capsys.readouterr().err
    assert f"export.hub: {says}" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_failed_push_loses_nothing_and_the_same_command_pushes_later(
    tmp_path, hub_service, capsys, monkeypatch
):
    hub_service.broken["upload_folder"] = OSError("the line\nis dead")
    config = str(write_config(tmp_path, **CHANGES))
    assert main(["--config", config]) == 1
    export = tmp_path / "run" / "export"
    error = capsys.readouterr().err
    assert "the push to films/liked failed (the line is dead); nothing is lost" in error
    assert f"hf upload films/liked {export} . --private" in error
    assert (export / "model.safetensors").exists()
    del hub_service.broken["upload_folder"]
    assert main(["--config", config]) == 0
    said = capsys.readouterr().out
    assert "export: finished before" in said and "pushed, https://huggingface.co/films/liked" in said
    assert "model.safetensors" in hub_service.repositories["films/liked"][1]


def test_a_repository_that_was_made_public_meanwhile_is_said_as_it_is(tmp_path, hub_service):
    config, _ = load_config(write_config(tmp_path, **CHANGES))
    hub_service.repositories["films/liked"] = (False, {})
    with pytest.raises(UserError, match="^export.hub: films/liked is there already and public"):
        hub._push(config, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_of_a_push_is_none(tmp_path, text):
    (tmp_path / "pushed.json").write_text(text)
    assert hub._pushed_before(tmp_path / "pushed.json") == {}


@pytest.mark.parametrize("setting, place", [("hub", "films/liked"), ("path", "elsewhere")])
def test_runs_of_a_sweep_do_not_export_to_one_place(tmp_path, setting, place):
    config = write_config(tmp_path, stages=["po", "export"], sft=None, export={setting: place})
    with pytest.raises(
        ConfigError, match=f"^export.{setting}: 2 runs of the sweep would export to .*{place}"
    ):
        plan_sweep(config, [], parse_axes(["seed=0,1"]))
    assert len(plan_sweep(config, [], parse_axes([f"export.{setting}={place},o/m"]))[1]) == 2


def test_without_a_card_nothing_is_pushed(tmp_path, hub_service, capsys, monkeypatch):
    def fail(*arguments):
        raise ValueError("no figures")

    monkeypatch.setattr(hub, "make_card", fail)
    assert main(["--config", str(write_config(tmp_path, **CHANGES))]) == 1
    assert "so nothing is pushed (no figures)" in capsys.readouterr().err
    assert hub_service.calls == ["whoami"] and not hub_service.repositories


ORIGIN = Origin("liked", "org/base", "org/base", ["org/pairs"], ["po"], "dpo", False, "seed: 0\n")


def test_names_and_tokens_are_no_markup_in_a_card(tmp_path):
    """Kills: a run called <b>, and a token of backticks that opens a code block."""
    found = make_card(ORIGIN._replace(name='<b>a_b"&amp;*c*', start="models/[x](y)"), Parts(), tmp_path)
    assert '\n# \\<b\\>a_b"\\&amp;\\*c\\*\n' in found and "from models/\\[x\\](y): po" in found
    assert [_as_code(text) for text in ("good", "`", "a``b")] == ["`good`", "`` ` ``", "```a``b```"]


@pytest.mark.parametrize(
    "parts, lines",
    [
        (Parts(), ['from_pretrained("o/m")']),
        (Parts(model=None, adapter="."), ['from_pretrained("org/base")', 'from_pretrained(base, "o/m")']),
        (
            Parts(model=None, adapter="adapter", base="base"),
            ['from_pretrained("o/m", subfolder="base")', 'from_pretrained(base, "o/m", subfolder="adapter")'],
        ),
    ],
)
def test_the_card_says_how_to_load_what_is_there(tmp_path, parts, lines):
    """The code is Python; the front matter is YAML that names base and data."""
    card = make_card(ORIGIN, parts, tmp_path, "o/m")
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert all(line in code for line in lines)
    matter = front_matter(card)
    assert (matter["base_model"], matter["datasets"]) == ("org/base", ["org/pairs"])
    assert matter["library_name"] == ("transformers" if parts.model else "peft")


def test_a_card_says_of_which_weights_its_figures_are(tmp_path):
    """Kills: the evaluation after po, in the card of what the adapters stand on."""
    summary = {"before": {"kl": 0.0}, "after": {"kl": 1.5}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    card = make_card(ORIGIN, Parts(), tmp_path)
    assert "## Evaluation" in card and "rounded" not in card
    assert "## Evaluation" not in make_card(ORIGIN._replace(is_evaluated=False), Parts(), tmp_path)
    card = make_card(ORIGIN._replace(rounded_to="bfloat16"), Parts(), tmp_path)
    assert "Measured before the weights were rounded to bfloat16 for this export." in card


def test_a_card_has_no_column_of_what_was_not_measured(tmp_path):
    summary = {"before": {"kl": None}, "after": {"kl": 1.5}}
    heads = {None: "| | as it is | |\n|---|---|---|\n", 0.0: "| | before | after | |\n|---|---|---|---|\n"}
    for before, head in heads.items():
        summary["before"]["kl"] = before
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        card = make_card(ORIGIN, Parts(), tmp_path)
        (row,) = [line for line in card.splitlines() if line.startswith("| KL to reference |")]
        assert head in card and row.count("|") == head.splitlines()[0].count("|")
        assert "| - |" not in row


def test_the_card_of_a_run_without_tokenizer_loads_none(tmp_path):
    """Kills: a line that ends in an error, since the export holds no such files."""
    for parts in (Parts(), Parts(model=None, adapter=".")):
        with_it, without = (
            make_card(ORIGIN._replace(has_tokenizer=has_tokenizer), parts, tmp_path)
            for has_tokenizer in (True, False)
        )
        assert "tokenizer = AutoTokenizer" in with_it and "okenizer" not in without
        compile(without.split("```python\n")[1].split("```")[0], "card", "exec")


def test_the_plan_and_the_line_for_a_wrong_name(tmp_path):
    config, _ = load_config(write_config(tmp_path, **CHANGES))
    assert "hub         the export is pushed to films/liked, private" in make_plan_text(config)
    with pytest.raises(ConfigError, match="export.hub: expected owner/name, got 'liked'"):
        load_config(write_config(tmp_path, export={"hub": "liked"}))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("taken", "taken holds no model, but data, notes.txt: an export"),
        ("file", "file is a file: take another path"),
        ("", "this is output_dir, or holds it"),
        ("run", "this is output_dir, or holds it"),
    ],
)
def test_an_export_goes_nowhere_among_other_files(tmp_path, place, said, capsys):
    """Kills: notes and checkpoints that are pushed to the Hub with the model; a path that is refused after
    hours of training."""
    (tmp_path / "taken" / "data").mkdir(parents=True)
    (tmp_path / "taken" / "notes.txt").write_text("private")
    (tmp_path / "file").write_text("x")
    config = [
        "--config",
        str(write_config(tmp_path, stages=["po", "export"], export={"path": str(tmp_path / place)})),
    ]
    for more in ([], ["--check"]):
        assert main([*config, *more]) != 0
        error = capsys.readouterr().err
        assert "export.path: " in error and said in error
    assert not (tmp_path / "run").exists()


def test_an_export_goes_into_an_empty_clone_or_over_another(tmp_path):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / "unfinished-00001").write_text("")
    for _ in range(2):
        run(tmp_path, "stages=[export]", f"export.path={tmp_path}/clone", "export.dtype=bfloat16")
    assert (tmp_path / "clone" / "model.safetensors").exists()


def test_an_export_of_adapters_is_done_again_where_it_lies(tmp_path):
    """Kills: a run whose second start is refused for the card that its push wrote, or for what was merged."""
    config, _ = load_config(write_config(tmp_path, stages=["po", "export"]))
    export = tmp_path / "run" / "export"
    (export / "adapter").mkdir(parents=True)
    for name in ("adapter/adapter_config.json", "README.md", "merged.gguf"):
        (export / name).write_text("{}")
    assert not list(place_mistakes(config))
    (export / "adapter" / "adapter_config.json").unlink()
    assert "README.md, merged.gguf" in "".join(place_mistakes(config))


@pytest.mark.parametrize("other", ["sweep.json", "round_1/config.yaml"])
def test_a_run_goes_on_where_runs_were_put_beside_it(tmp_path, other):
    config, _ = load_config(write_config(tmp_path, stages=["score"]))
    beside = tmp_path / "run" / other
    beside.parent.mkdir(parents=True)
    beside.write_text("{}")
    assert len(list(place_mistakes(config))) == 1, "it would read none of them"
    (tmp_path / "run" / "po").mkdir()
    assert not list(place_mistakes(config))
