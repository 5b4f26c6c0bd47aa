"""What runs in the sandbox's process: set up the guards, run program.py, tell what became of it.

parent.py starts it with three arguments: a file descriptor to answer on, seconds, MiB. The secret word that
vouches for the answer comes on stdin. It writes two things to the descriptor: at the start, a line with the
guards that hold; after the program's end, the word and what went wrong ("" for nothing).

It imports nothing of ours, and takes whatever it needs after the program's end before the program runs,
because the program may change any module.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import struct
import sys
import types

MOST_FILE_BYTES = 2**24
MOST_OPEN_FILES = 64
ROOM_TO_ANSWER_BYTES = 2**26  # more memory, after a program has used up its own

CLONE_NEWUSER, CLONE_NEWNET, CLONE_THREAD = 0x10000000, 0x40000000, 0x10000
EPERM, ENOSYS = 1, 38
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22

# Numbers of system calls on (x86_64, aarch64), None where a call does not exist. From Linux,
# arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
Call = tuple[int | None, int | None]
COLUMN = {"x86_64": 0, "aarch64": 1}
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CAPSET: Call = (126, 91)
CLONE: Call = (56, 220)
CLONE3: Call = (435, 435)
REFUSED: dict[str, Call] = {
    # They reach the network.
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # They start, signal or trace other processes.
    "fork": (57, None),
    "vfork": (58, None),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    # They change a file's mode, owner, attributes or times, of which Landlock knows nothing.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
# Allowed on this process only.
OF_ITSELF: dict[str, Call] = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
# Without seccomp: Python's audit events that are refused.
REFUSED_EVENTS = (
    "socket.",
    "os.fork",
    "os.posix_spawn",
    "os.exec",
    "os.system",
    "os.kill",
    "subprocess.",
    "pty.spawn",
    "os.startfile",
)


def main(answer_fd: int, time_s: float, memory_mb: int) -> None:
    """Runs program.py and ends the process.

    Args:
        answer_fd: where to answer.
        time_s: limit of CPU time; the parent watches the wall clock.
        memory_mb: limit of address space, MiB.
    """
    word = os.read(0, 64)
    with open("program.py", "rb") as file:
        source = file.read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # The name is not __main__: as in HumanEval's own runner, a main guard does not fire.
    program = types.ModuleType("program")
    sys.modules["program"] = program
    sys.argv[:] = ["program.py"]
    os.write(answer_fd, (json.dumps(lock(time_s, memory_mb)) + "\n").encode())
    write, leave, setrlimit, memory = os.write, os._exit, resource.setrlimit, resource.RLIMIT_AS
    enough_bytes = memory_mb * 2**20 + ROOM_TO_ANSWER_BYTES
    enough = enough_bytes, enough_bytes
    try:
        exec(compile(source.decode("utf-8"), "program.py", "exec", dont_inherit=True), program.__dict__)
        why = ""
    except MemoryError:
        why = "memory"
    except SystemExit as leaving:
        if leaving.code is None:
            why = "exit 0"
        else:
            why = f"exit {leaving.code}" if isinstance(leaving.code, int) else "exit 1"
    except BaseException as error:
        try:
            setrlimit(memory, enough)
            why = f"{type(error).__name__}: {error}"[:300]
        except BaseException:
            why = "an exception that cannot be shown"
    write(answer_fd, word + why.encode("utf-8", "replace"))
    leave(0 if why == "" else 1)  # at once: threads and atexit have no say


def lock(time_s: float, memory_mb: int) -> list[str]:
    """Sets up, for good, whatever guards this machine has. Returns the names of those that hold."""
    own_network = separate_network()
    files = refuse_files()
    calls = refuse_calls()
    if not calls:
        sys.addaudithook(refuse_events)
    cpu_s = math.ceil(time_s) + 1
    memory_bytes = memory_mb * 2**20
    for name, soft, hard in (
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", cpu_s, cpu_s + 1),
        ("RLIMIT_FSIZE", MOST_FILE_BYTES, MOST_FILE_BYTES),
        ("RLIMIT_NOFILE", MOST_OPEN_FILES, MOST_OPEN_FILES),
        ("RLIMIT_AS", memory_bytes, memory_bytes + ROOM_TO_ANSWER_BYTES),
    ):
        # Not every limit is known or allowed everywhere (macOS: RLIMIT_AS).
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (soft, hard))
    holds = {"network": own_network or calls, "processes": calls, "files": files}
    return [name for name, does_hold in holds.items() if does_hold]


def refuse_events(event: str, arguments: tuple) -> None:
    """An audit hook: refuses network and processes to Python code, but not to C code."""
    if event.startswith(REFUSED_EVENTS):
        raise PermissionError(EPERM, f"not in the sandbox: {event}")


def number_of(call: Call) -> int | None:
    """The number of a system call on this machine; None: there is none, or the machine is not known."""
    if sys.platform != "linux" or platform.machine() not in COLUMN:
        return None
    return call[COLUMN[platform.machine()]]


def separate_network() -> bool:
    """Moves to a network namespace without interfaces. Who is not root needs a user namespace to make one."""
    try:
        return ctypes.CDLL(None).unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.geteuid() else 0)) == 0
    except (AttributeError, OSError):
        return False


def refuse_files() -> bool:
    """Landlock: writing, making, renaming and removing files only in the working directory.

    See https://docs.kernel.org/userspace-api/landlock.html.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    create, add, restrict = 444, 445, 446
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1 or not no_new_privileges(libc):
        return False
    file_access = 1 << 1  # write_file
    if version >= 3:
        file_access |= 1 << 14  # truncate
    access = file_access | sum(1 << bit for bit in range(4, 13))  # remove_*, make_*
    if version >= 2:
        access |= 1 << 13  # refer
    ruleset = libc.syscall(create, struct.pack("=Q", access), ctypes.c_size_t(8), 0)
    for path, allowed in ((".", access), (os.devnull, file_access)):
        beneath = os.open(path, os.O_PATH)
        if libc.syscall(add, ruleset, 1, struct.pack("=Qi", allowed, beneath), 0):
            return False
        os.close(beneath)
    done = libc.syscall(restrict, ruleset, 0) == 0
    os.close(ruleset)
    return done


def no_new_privileges(libc: ctypes.CDLL) -> bool:
    """No program that is started can have more rights; without it only root may restrict itself."""
    return libc.prctl(PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(x) for x in (1, 0, 0, 0))) == 0


def refuse_calls() -> bool:
    """Drops all capabilities and sets a seccomp filter: REFUSED calls fail, and no process can be started."""
    if number_of(CLONE) is None:
        return False
    steps = filter_steps()
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None)
    libc.syscall(number_of(CAPSET), struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6))
    if not no_new_privileges(libc):
        return False
    return libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0


FilterStep = tuple[int, int, int, int]  # of classic BPF: operation, steps to skip if true, if false, operand


def filter_steps() -> list[FilterStep]:
    """The seccomp filter, in classic BPF."""

    def load(offset: int) -> FilterStep:
        return 0x20, 0, 0, offset

    def if_equal(operand: int, skip_if: int, skip_else: int) -> FilterStep:
        return 0x15, skip_if, skip_else, operand

    def answer(action: int) -> FilterStep:
        return 0x06, 0, 0, action

    allow, refuse = answer(0x7FFF0000), answer(0x00050000 | EPERM)
    not_there, kill = answer(0x00050000 | ENOSYS), answer(0x80000000)
    load_architecture, load_number, load_first_argument = load(4), load(0), load(16)
    if_x32_call = (0x35, 0, 1, 0x40000000)  # 0x35: >=
    if_thread = (0x45, 0, 1, CLONE_THREAD)  # 0x45: has this bit
    steps = [load_architecture, if_equal(AUDIT_ARCH[platform.machine()], 1, 0), kill]
    steps += [load_number, if_x32_call, refuse]
    for call in REFUSED.values():
        if (number := number_of(call)) is not None:
            steps += [if_equal(number, 0, 1), refuse]
    # The flags of clone3 lie in memory, where no filter can look. libc then takes clone.
    steps += [if_equal(number_of(CLONE3), 0, 1), not_there]
    steps += [if_equal(number_of(CLONE), 0, 4), load_first_argument, if_thread, allow, refuse]
    for call in OF_ITSELF.values():
        steps += [if_equal(number_of(call), 0, 5), load_first_argument]
        steps += [if_equal(0, 1, 0), if_equal(os.getpid(), 0, 1), allow, refuse]
    return [*steps, allow]


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
