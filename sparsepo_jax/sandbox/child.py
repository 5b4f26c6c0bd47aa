"""What runs in the sandbox's process (sandbox.py starts it): lock the doors, run program.py of the working directory, say what became of it.

Arguments: a file descriptor to answer on, seconds, MiB; the word that vouches for the answer comes by stdin. Says, on the descriptor, a line with the
guards that stand, and after the program's end the word and what went wrong ("": nothing). Stands alone: nothing of ours is imported, and what
is needed afterwards is bound before, because the program may bend any module.
"""

import ctypes
import json
import math
import os
import platform
import resource
import struct
import sys
import types

MOST_FILE_BYTES, MOST_FILES, ROOM_TO_ANSWER = 2**24, 64, 2**26
CLONE_NEWUSER, CLONE_NEWNET, CLONE_THREAD = 0x10000000, 0x40000000, 0x10000
EPERM, ENOSYS = 1, 38
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22
# System calls by machine: (x86_64, aarch64), None where it does not exist. Linux, arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
CAPSET, CLONE, CLONE3 = (126, 91), (56, 220), (435, 435)
REFUSED = (
    (41, 198),
    (425, 425),
    (426, 426),
    (427, 427),  # socket, io_uring_*: they reach the network
    (57, None),
    (58, None),  # fork, vfork
    (200, 130),
    (129, 138),
    (297, 240),
    (424, 424),
    (101, 117),
    (310, 270),
    (311, 271),  # tkill, *sigqueueinfo, pidfd_send_signal, ptrace, process_vm_*
    (90, None),
    (91, 52),
    (268, 53),
    (452, 452),
    (92, None),
    (93, 55),
    (94, None),
    (260, 54),  # chmod, chown: Landlock knows nothing of them
    (188, 5),
    (189, 6),
    (190, 7),
    (197, 14),
    (198, 15),
    (199, 16),
    (132, None),
    (235, None),
    (261, None),
    (280, 88),  # set/removexattr, utime
)
OF_ITSELF = ((62, 129), (234, 131), (302, 261))  # kill, tgkill, prlimit64: on this process only
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
    word, source = os.read(0, 64), open("program.py", "rb").read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    program = types.ModuleType(
        "program"
    )  # not __main__: as in HumanEval's own runner, a main guard does not fire
    sys.modules["program"] = program
    sys.argv[:] = ["program.py"]
    os.write(answer_fd, (json.dumps(lock(time_s, memory_mb)) + "\n").encode())
    write, leave, setrlimit, memory, unlimited = (
        os.write,
        os._exit,
        resource.setrlimit,
        resource.RLIMIT_AS,
        (memory_mb * 2**20 + ROOM_TO_ANSWER,) * 2,
    )
    try:
        exec(compile(source.decode("utf-8"), "program.py", "exec", dont_inherit=True), program.__dict__)
        why = ""
    except MemoryError:
        why = "memory"
    except SystemExit as leaving:
        why = (
            f"exit {leaving.code}"
            if isinstance(leaving.code, int)
            else "exit 0"
            if leaving.code is None
            else "exit 1"
        )
    except BaseException as error:
        try:
            setrlimit(memory, unlimited)
            why = f"{type(error).__name__}: {error}"[:300]
        except BaseException:
            why = "an exception that cannot be shown"
    write(answer_fd, word + why.encode("utf-8", "replace"))
    leave(0 if why == "" else 1)  # threads and atexit have no say


def lock(time_s: float, memory_mb: int) -> list[str]:
    """Puts up whatever guards this machine has; returns the names of those of sandbox.py that stand. None can be taken down again."""
    own_network, files = separate_network(), refuse_files()
    calls = refuse_calls()
    if not calls:
        sys.addaudithook(refuse_events)
    cpu_s, memory = math.ceil(time_s) + 1, memory_mb * 2**20
    for name, soft, hard in (
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", cpu_s, cpu_s + 1),
        ("RLIMIT_FSIZE", MOST_FILE_BYTES, MOST_FILE_BYTES),
        ("RLIMIT_NOFILE", MOST_FILES, MOST_FILES),
        ("RLIMIT_AS", memory, memory + ROOM_TO_ANSWER),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (AttributeError, ValueError, OSError):  # not known or not allowed here (macOS: RLIMIT_AS)
            pass
    return ["network"] * (own_network or calls) + ["processes"] * calls + ["files"] * files


def refuse_events(event: str, arguments: tuple) -> None:
    if event.startswith(REFUSED_EVENTS):
        raise PermissionError(EPERM, f"not in the sandbox: {event}")


def number_of(calls: tuple[int | None, int | None]) -> int | None:
    return (
        calls[COLUMN[platform.machine()]]
        if sys.platform == "linux" and platform.machine() in COLUMN
        else None
    )


def separate_network() -> bool:
    """A network namespace without interfaces; who is not root needs a user namespace to make one."""
    try:
        return ctypes.CDLL(None).unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.geteuid() else 0)) == 0
    except (AttributeError, OSError):
        return False


def refuse_files() -> bool:
    """Landlock (https://docs.kernel.org/userspace-api/landlock.html): writing, making, renaming and removing only in the working directory."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    create, add, restrict = 444, 445, 446
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1 or libc.prctl(PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(x) for x in (1, 0, 0, 0))):
        return False
    file_access = 1 << 1 | (version >= 3) << 14  # write_file, truncate
    access = (
        file_access | sum(1 << bit for bit in range(4, 13)) | (version >= 2) << 13
    )  # remove_*, make_*, refer
    ruleset = libc.syscall(create, struct.pack("=Q", access), ctypes.c_size_t(8), 0)
    for path, allowed in ((".", access), (os.devnull, file_access)):
        beneath = os.open(path, os.O_PATH)
        if libc.syscall(add, ruleset, 1, struct.pack("=Qi", allowed, beneath), 0):
            return False
        os.close(beneath)
    done = libc.syscall(restrict, ruleset, 0) == 0
    os.close(ruleset)
    return done


def refuse_calls() -> bool:
    """Drops all capabilities and sets a seccomp filter (classic BPF): REFUSED fail, threads may be started but no processes."""
    if number_of(CLONE) is None:
        return False
    load = lambda offset: (0x20, 0, 0, offset)
    equal = lambda x, yes, no: (0x15, yes, no, x)
    answer = lambda x: (0x06, 0, 0, x)
    allow, refuse, unknown, kill = (
        answer(0x7FFF0000),
        answer(0x00050000 | EPERM),
        answer(0x00050000 | ENOSYS),
        answer(0x80000000),
    )
    first_argument = load(16)
    filter_ = [
        load(4),
        equal(AUDIT_ARCH[platform.machine()], 1, 0),
        kill,
        load(0),
        (0x35, 0, 1, 0x40000000),
        refuse,
    ]  # 0x35: >=, the x32 calls
    for calls in REFUSED:
        if number_of(calls) is not None:
            filter_ += [equal(number_of(calls), 0, 1), refuse]
    filter_ += [
        equal(number_of(CLONE3), 0, 1),
        unknown,
    ]  # its flags lie in memory, where no filter can look: libc then takes clone
    filter_ += [
        equal(number_of(CLONE), 0, 4),
        first_argument,
        (0x45, 0, 1, CLONE_THREAD),
        allow,
        refuse,
    ]  # 0x45: has this bit
    for calls in OF_ITSELF:
        filter_ += [
            equal(number_of(calls), 0, 5),
            first_argument,
            equal(0, 1, 0),
            equal(os.getpid(), 0, 1),
            allow,
            refuse,
        ]
    filter_ += [allow]
    code = b"".join(struct.pack("=HBBI", *step) for step in filter_)
    held = ctypes.create_string_buffer(code, len(code))
    wanted = ctypes.create_string_buffer(struct.pack("@HP", len(filter_), ctypes.addressof(held)))
    libc = ctypes.CDLL(None)
    libc.syscall(number_of(CAPSET), struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[0] * 6))
    return (
        libc.prctl(PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(x) for x in (1, 0, 0, 0))) == 0
        and libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), wanted, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
