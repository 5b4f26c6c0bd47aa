"""One run per directory: a lock that names its owner, and that the next run takes over if the owner is gone.

Two signs together tell whether an owner is gone. The kernel drops its lock on the file (flock) when a process
ends, however it ends; this decides where owner and newcomer share a kernel and a mounted file system.
Elsewhere (another host, a bucket mounted twice) the owner writes a sign of life into the file every few
seconds, and counts as gone when it has been silent for a minute. A process id alone decides nothing: ids are
used again, and every container has its own.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsepo_jax.core.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FILE = "run.lock"
SIGN_EVERY_S = 10.0
GONE_AFTER_S = 60.0  # without a sign of life
_BYTES = 1024  # of the file, always, so that a sign of life is one write of the same length


class DirectoryLock:
    """The lock on a directory.

    The directory is made if it is missing, and removed again if nothing was put into it.
    """

    def __init__(self, directory: Path, note: Callable[[str], None] = print):
        """Takes nothing yet.

        Args:
            directory: of the run.
            note: note(text) shows the user a line about an owner that is gone or awaited.
        """
        self._directory = directory
        self._note = note
        self._path = directory / FILE
        self._file: int | None = None
        self._made: list[Path] = []
        self._owner: dict[str, Any] = {}
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def take(self) -> None:
        """Takes the lock.

        Raises:
            UserError: another run holds it; the message names its process and host.
        """
        self._made = [path for path in (self._directory, *self._directory.parents) if not path.exists()]
        try:
            while not self._try():
                pass
        except BaseException:
            self._close()
            self._remove_directories()
            raise
        self._heart = threading.Thread(target=self._live, name="run lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Gives the lock back, if it is held."""
        if self._file is None:
            return
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        owner = _read(self._path)
        if owner is not None and owner.get("run") == self._owner["run"]:
            self._path.unlink()
        self._close()
        self._remove_directories()

    # ------------------------------------------------------------ taking it

    def _try(self) -> bool:
        """Whether the lock is ours now. False: the file was replaced meanwhile, so try again."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        file = self._open_file()
        locked = _lock_file(file)
        if not _same_file(file, self._path):
            self._close()
            return False
        before = _parse(os.pread(file, _BYTES, 0))
        if locked is False:
            raise self._refusal(before)
        if before is not None and not self._is_gone(before, locked=locked is True):
            self._wait_for_silence(before)
            if not _same_file(file, self._path):
                self._close()
                return False
        if before is not None:
            self._note(f"{self._directory}: {_name(before)} is gone; this run takes its place")
        self._owner = _this_process(os.fstat(file).st_dev)
        self._sign()
        return True

    def _is_gone(self, owner: dict[str, Any], *, locked: bool) -> bool:
        """Whether the owner is known at once to be gone. UserError: it is known to live.

        locked: whether the kernel has given the file's lock to us.
        """
        here = _this_process(os.fstat(self._open_file()).st_dev)

        def share(*keys: str) -> bool:
            return all(owner.get(key) is not None and owner.get(key) == here[key] for key in keys)

        if locked and share("kernel", "device"):
            return True
        if share("kernel", "processes"):
            if _started(owner.get("pid")) == owner.get("started"):
                raise self._refusal(owner)
            return True
        return self._silent_s(owner) >= GONE_AFTER_S

    def _silent_s(self, owner: dict[str, Any]) -> float:
        """Seconds since the last sign of life, by the clock of owner or file system, whichever is later."""
        alive = owner.get("alive")
        return time.time() - max(alive if isinstance(alive, float) else 0.0, os.stat(self._path).st_mtime)

    def _wait_for_silence(self, owner: dict[str, Any]) -> None:
        """Waits until an owner has been silent for a minute. UserError: it gives a sign of life."""
        left_s = max(0.0, min(GONE_AFTER_S, GONE_AFTER_S - self._silent_s(owner)))
        self._note(
            f"{self._directory}: the last run here, {_name(owner)}, has not ended properly; "
            f"waiting up to {left_s:.0f} s for a sign of life from it"
        )
        until_s = time.monotonic() + left_s
        while time.monotonic() < until_s:
            time.sleep(min(1.0, left_s))
            now = _read(self._path)
            if now is not None and now.get("alive") != owner.get("alive"):
                raise self._refusal(now)

    def _refusal(self, owner: dict[str, Any] | None) -> UserError:
        return UserError(
            f"{self._directory} is in use: {_name(owner)} is running in it; wait for it or stop it, "
            "or take another output_dir (processes of one run: set compute.distributed=true)"
        )

    # ------------------------------------------------------------ holding it

    def _sign(self) -> None:
        self._owner["alive"] = time.time()
        file = self._open_file()
        os.pwrite(file, json.dumps(self._owner).encode().ljust(_BYTES - 1) + b"\n", 0)
        os.fsync(file)

    def _live(self) -> None:
        while not self._ended.wait(SIGN_EVERY_S):
            owner = _read(self._path)
            # Another owner's name: we were silent for too long, or both began at the same moment.
            if owner is not None and owner.get("run") != self._owner["run"]:
                self._note(f"{self._directory}: {_name(owner)} has taken this directory over; this run stops")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            # The file system may be away for a moment. If it stays away, the run itself will say so.
            with contextlib.suppress(OSError):
                self._sign()

    def _open_file(self) -> int:
        """The lock's file, which must be open."""
        assert self._file is not None
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _remove_directories(self) -> None:
        """Removes the directories that were made for the lock and hold nothing else."""
        for path in self._made:
            try:
                path.rmdir()
            except OSError:
                return


def _lock_file(file: int) -> bool | None:
    """Whether the kernel gives us the file's lock. None: this file system or machine has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process(device: int) -> dict[str, Any]:
    """What a lock says of its owner.

    kernel identifies this machine since it was started; processes is the space in which `pid` is a number;
    started is when the process was. device is that of the lock's file.
    """
    pid = os.getpid()
    return {
        "pid": pid,
        "host": socket.gethostname()[:100],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "kernel": _kernel(),
        "processes": _process_space(),
        "started": _started(pid),
        "device": device,
        "run": uuid.uuid4().hex,
    }


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()[:100]


def _process_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "all"


def _started(pid: Any) -> str | None:
    """When a process of this machine was started, by the kernel's clock. None: there is no such process."""
    if type(pid) is not int:
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    if os.path.exists("/proc/self/stat"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "unknown"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> dict[str, Any] | None:
    """None: nobody has signed."""
    try:
        owner = json.loads(content)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) else None


def _name(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"
