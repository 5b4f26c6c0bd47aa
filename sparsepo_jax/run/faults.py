"""What goes wrong outside of the program, in one line that says what to do: disks, rights, memory, processes that are gone."""

import errno
import re

_WAYS_OUT = {
    errno.ENOSPC: "no space left on the device: make room",
    errno.EDQUOT: "the disk quota is used up: make room",
    errno.EFBIG: "the file is larger than is allowed here: raise the limit (ulimit -f)",
    errno.EACCES: "no permission: take a place that you may write to, or change its rights",
    errno.EPERM: "no permission: take a place that you may write to, or change its rights",
    errno.EROFS: "the file system is read-only: take another place",
    errno.EIO: "the disk cannot be read or written: take another one",
}
_MEMORY = (
    "take smaller micro-steps (a larger po.accumulation or sft.accumulation, a smaller evaluation.batch_size or generation.batch_size), "
    "compute.remat=true, more devices in compute.mesh.fsdp or .tensor, or po.lora"
)

# XLA says it with a status (RESOURCE_EXHAUSTED, or INTERNAL where the CPU's dispatch fails), CUDA, C++ and the kernel in their own words.
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED.*memory|out of memory|OUT_OF_MEMORY|bad_alloc|cannot allocate memory", re.IGNORECASE
)


def explain(error: BaseException, output_dir: str) -> str | None:
    """One line, or None: nothing that is known, so a fault of the program. What hides in another error's text or cause counts, too."""
    seen: BaseException | None = error
    while seen is not None:
        text = " ".join(str(seen).split())
        if isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM):
            return f"the host is out of memory; {_MEMORY}"
        if isinstance(seen, RuntimeError | ValueError) and _OUT_OF_MEMORY.search(text):
            return f"a device is out of memory ({text[:160]}); {_MEMORY}"
        number = seen.errno if isinstance(seen, OSError) else None
        # TensorStore, under Orbax, says it in words.
        number = number or (
            errno.ENOSPC
            if "No space left" in text
            else errno.EFBIG
            if "File too large" in text
            else errno.EACCES
            if "Permission denied" in text
            else None
        )
        if number in _WAYS_OUT:
            name = seen.filename if isinstance(seen, OSError) and seen.filename else output_dir
            return f"{name}: {_WAYS_OUT[number]}; the same command then continues the run"
        if isinstance(seen, OSError) and seen.strerror:
            return f"{seen.filename or output_dir}: {seen.strerror}"
        seen = seen.__cause__ or seen.__context__
    return None
