"""Faults from outside the program: disks, rights, memory, processes that are gone.

Each is explained in one line that says what to do.
"""

import errno
import re

_REMEDIES = {
    errno.ENOSPC: "no space left on the device: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EFBIG: "the file is larger than is allowed here: raise the limit (ulimit -f)",
    errno.EACCES: "no permission: take a place that you may write to, or change its rights",
    errno.EPERM: "no permission: take a place that you may write to, or change its rights",
    errno.EROFS: "the file system is read-only: take another place",
    errno.EIO: "the disk cannot be read or written: take another one",
    errno.ESTALE: "the file system of the network has lost it: mount it anew",
    errno.ENOTCONN: "the file system of the network is away: mount it anew",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: close some",
    errno.EAGAIN: "no more processes or threads can be started: raise the limit (ulimit -u)",
}
# Of an error of the system that names no file they may be a stream's or a socket's.
_OF_SOCKETS = (errno.EAGAIN, errno.ENOTCONN)
# Nothing was written, since the path cannot be what it is meant to be.
_WRONG_PATHS = {
    errno.EEXIST: "something else is there, a file or a link to nothing: take another path, or put it away",
    errno.ENOTDIR: "a part of this path is a file: take another path, or put the file away",
    errno.EISDIR: "a directory is where a file should be: put it away",
    errno.ENAMETOOLONG: "the path is too long: take a shorter one",
}
# TensorStore, under Orbax, reports these in words.
_IN_WORDS = {
    "No space left": errno.ENOSPC,
    "File too large": errno.EFBIG,
    "Permission denied": errno.EACCES,
    "Too many open files": errno.EMFILE,
    "Input/output error": errno.EIO,
    "Stale file handle": errno.ESTALE,
    "Transport endpoint is not connected": errno.ENOTCONN,
    "can't start new thread": errno.EAGAIN,
}
_MEMORY = (
    "take smaller micro-steps (a larger po.accumulation, which changes the loss of aot alone, or "
    "sft.accumulation, a smaller evaluation.batch_size or generation.batch_size), compute.remat=everything, "
    "more devices in compute.mesh.fsdp or .tensor, or po.lora"
)

# XLA reports it with a status (RESOURCE_EXHAUSTED, or INTERNAL where the CPU's dispatch fails); CUDA, C++ and
# the kernel in words of their own.
# Libraries of CUDA that find no room for themselves say what they would have allocated.
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED.*(?:memory|allocat|hbm)|out of memory|OUT_OF_MEMORY|bad_alloc"
    r"|cannot allocate memory|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)

_ENVIRONMENT = re.compile(r"\bfor environment 'JAX_\w+'")  # a variable of JAX that holds no value it knows


def explain(error: BaseException, output_dir: str) -> str | None:
    """One line that explains an error, or None if it is no known fault from outside, so one of the program.

    An error within another's text or among its causes counts, too.
    """
    current: BaseException | None = error
    while current is not None:
        line = _explain_alone(current, output_dir)
        if line is not None:
            return line
        current = current.__cause__ or current.__context__
    return None


def _explain_alone(error: BaseException, output_dir: str) -> str | None:
    """The same of one error without its causes."""
    text = " ".join(str(error).split())
    from_system = isinstance(error, OSError)
    if isinstance(error, MemoryError) or (from_system and error.errno == errno.ENOMEM):
        return f"the host is out of memory; {_MEMORY}"
    if isinstance(error, ValueError) and _ENVIRONMENT.search(text):
        return f"{text}: set it right, or unset it"
    number = error.errno if from_system else None
    number = number or next((code for words, code in _IN_WORDS.items() if words in text), None)
    if from_system and error.errno in _OF_SOCKETS and not error.filename:
        return None
    if number is None and isinstance(error, RuntimeError | ValueError) and _OUT_OF_MEMORY.search(text):
        return f"a device is out of memory ({text[:160]}); {_MEMORY}"
    path = (error.filename if from_system else None) or output_dir
    if number in _WRONG_PATHS:
        return f"{path}: {_WRONG_PATHS[number]}"
    if number in _REMEDIES:
        return f"{path}: {_REMEDIES[number]}; the same command then continues the run"
    if from_system and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return None
