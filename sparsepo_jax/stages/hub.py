"""What stands in `export.hub`: asked about before anything is done, and pushed when all stages are."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparsepo_jax.config.schema.root import Config
from sparsepo_jax.core.errors import UserError
from sparsepo_jax.core.files import write_json, write_text
from sparsepo_jax.report.card import Parts, make_card
from sparsepo_jax.sharding.processes import as_the_first
from sparsepo_jax.stages.context import Run, say
from sparsepo_jax.stages.export import ExportPlaces, origin, places_of, rounded_to

_LATER = "or leave out export.hub and push what the run exports later: hf upload"


def check_hub(config: Config) -> None:
    """Asks the Hub, before hours of training, whether the export can be pushed when they are over.

    Raises:
        UserError: in all processes, if there is no token, no network, or no right to write.
    """
    if config.export.hub is None or "export" not in config.stages:
        return
    refusal: UserError | None = None
    if jax.process_index() == 0:
        try:
            _check_access(config)
        except UserError as error:
            refusal = error
    if as_the_first(np.array(refusal is not None)):
        raise refusal or UserError("the first process of this run says why it does not begin")


def _check_access(config: Config) -> None:
    from huggingface_hub import HfApi, get_token

    repository = config.export.hub
    if not (token := get_token()):
        raise UserError(
            "export.hub: there is no token: set HF_TOKEN to one that may write (hf.co/settings/tokens), "
            f"{_LATER} {repository} PATH"
        )
    api = HfApi(token=token)
    who = _asked(repository, lambda: api.whoami())
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(
            f"export.hub: the token of {who.get('name')} may only read: set HF_TOKEN to one that may write, "
            f"{_LATER} {repository} PATH"
        )
    owners = [str(who.get("name")), *(str(group.get("name")) for group in who.get("orgs") or ())]
    if (owner := repository.split("/")[0]) not in owners:
        raise UserError(
            f"export.hub: the token of {owners[0]} cannot write to {owner}: expected one of "
            f"{', '.join(owners)} before the slash, {_LATER} {repository} PATH"
        )
    if _asked(repository, lambda: api.repo_exists(repository)):
        _refuse_public(config, _asked(repository, lambda: api.repo_info(repository)).private)


def _asked(repository: str, question: Callable[[], Any]) -> Any:
    """The Hub's answer. UserError: it has none."""
    try:
        return question()
    except Exception as error:  # no network, a refused token, a service that is down: of many kinds
        raise UserError(
            f"export.hub: the Hub cannot be asked about {repository} ({_reason(error)}): mend that, {_LATER} "
            f"{repository} PATH"
        ) from error


def _refuse_public(config: Config, is_private: bool) -> None:
    """UserError: what should be private would be put where everyone can read it."""
    if config.export.hub_private and not is_private:
        raise UserError(
            f"export.hub: {config.export.hub} is there already and public: take another name, or set "
            "export.hub_private=false"
        )


def push_export(run: Run) -> None:
    """Pushes the finished export with its card, in the first process. What was pushed is not pushed again.

    Raises:
        UserError: the card cannot be made, or the Hub does not take it. The export stays as it is.
    """
    repository = run.config.export.hub
    if repository is None or "export" not in run.config.stages or jax.process_index() != 0:
        return
    directory, parts = _pushed(run)
    record = {"repository": repository, "exported": run.marks.all()["export"]["finished"]}
    record_path = run.output_dir / "pushed.json"
    before = _pushed_before(record_path)
    if before.items() >= record.items():
        say(f"export: pushed before, {before['url']}")
        return
    write_text(directory / "README.md", _card(run, directory, parts, repository))
    url = _push(run.config, directory)
    write_json(record_path, record | {"url": url})
    say(f"export: pushed, {url}")


def _pushed_before(path: Path) -> dict[str, Any]:
    """What was pushed; {}: nothing, or a record that is damaged, where pushing again does no harm."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and "url" in record else {}


def _pushed(run: Run) -> tuple[Path, Parts]:
    """The directory that is pushed, and what it holds: all of the export, or adapters that need no base."""
    config = run.config
    path = Path(config.export.path or run.output_dir / "export")
    trained_adapters = run.marks.finished("po") and run.lora("po") is not None
    places = places_of(run, path, adapters_trained=trained_adapters)
    if places.model is None and places.base is None:
        return places.adapter, Parts(model=None, adapter=".")
    return path, _parts_below(places, path)


def _parts_below(places: ExportPlaces, path: Path) -> Parts:
    def below(place: Path | None) -> str | None:
        return None if place is None else str(place.relative_to(path))

    return Parts(below(places.model), below(places.adapter), below(places.base))


def _card(run: Run, directory: Path, parts: Parts, repository: str) -> str:
    """The card with the figures of all stages. UserError: it cannot be made."""
    try:
        has_masks = any(directory.glob("**/masks.safetensors"))
        about = origin(run, has_masks=has_masks)
        if parts.model is not None:
            about = about._replace(rounded_to=rounded_to(run, merged=parts.adapter is not None))
        return make_card(about, parts, run.output_dir, repository)
    except Exception as error:  # whatever it is: without a card nothing is pushed
        raise UserError(
            f"export.hub: the model card cannot be made, so nothing is pushed ({_reason(error)}); the export "
            f"is complete in {directory}"
        ) from error


def _push(config: Config, directory: Path) -> str:
    """Uploads the directory and returns where it is. UserError: with the command that does it later."""
    from huggingface_hub import HfApi, get_token

    repository, is_private = config.export.hub, config.export.hub_private
    try:
        api = HfApi(token=get_token())
        api.create_repo(repository, private=is_private, exist_ok=True)
        _refuse_public(config, api.repo_info(repository).private)
        api.upload_folder(
            repo_id=repository, folder_path=str(directory), commit_message="Export of sparsepo_jax"
        )
    except UserError:
        raise
    except Exception as error:  # no network, no room, no rights: of many kinds
        flag = " --private" if is_private else ""
        later = f"hf upload {repository} {shlex.quote(str(directory))} .{flag}"
        raise UserError(
            f"export.hub: the push to {repository} failed ({_reason(error)}); nothing is lost, the export is "
            f"complete: push it with the same command as this run, or with: {later}"
        ) from error
    return f"https://huggingface.co/{repository}"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
