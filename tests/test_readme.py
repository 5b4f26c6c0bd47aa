"""What the README shows runs, and the map in CONTRIBUTING.md is that of the package."""

import re
import subprocess
from pathlib import Path

README, CONTRIBUTING = (
    (Path(__file__).parent.parent / name).read_text() for name in ("README.md", "CONTRIBUTING.md")
)


def test_the_map_has_every_room():
    section = CONTRIBUTING.split("## Map")[1].split("\n## ")[0]
    package = Path(__file__).parent.parent / "sparsepo_jax"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    lines = [line for line in section.splitlines() if line.startswith(" " * 6)]
    named = {name for line in lines for name in re.findall(r" {3,}(\w+)/", line)}
    assert named == rooms


def test_ci_types_the_two_commands_of_the_readme():
    """CI has no commands of its own that could work where the README's do not."""
    section = README.split("## Two commands")[1].split("\n## ")[0]
    [block] = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    commands = block.splitlines()
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv .venv && .venv/bin/pip install") for command in commands)
    script = (Path(__file__).parent.parent / ".ci" / "run").read_text()
    extracted = subprocess.run(
        [
            "bash",
            "-c",
            re.search(r"^commands=.*?README.md\)$", script, re.DOTALL | re.MULTILINE)[0]
            + '\necho "$commands"',
        ],
        cwd=Path(__file__).parent.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    assert extracted.stdout.splitlines() == commands
