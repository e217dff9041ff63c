"""The process in which a model's code runs: bounds itself for good, then runs it. Started by `sandbox.py`.

What is allowed is listed, everything else is refused with EPERM: by a seccomp filter (classic BPF, `seccomp(2)`), which
needs no privilege once the process has given up gaining any.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from typing import Any

# Numbers of system calls: computing, memory, time, and reading what is open or may be opened to read.
X86_64 = {
    "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "readv": 19, "writev": 20, "access": 21, "select": 23, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "dup": 32, "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "getcwd": 79, "readlink": 89,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "ppoll": 271,
    "getrandom": 318, "statx": 332, "rseq": 334, "faccessat2": 439,
}  # fmt: skip
AARCH64 = {
    "getcwd": 17, "dup": 23, "faccessat": 48, "close": 57, "getdents64": 61, "lseek": 62, "read": 63, "write": 64,
    "readv": 65, "writev": 66, "pread64": 67, "ppoll": 73, "readlinkat": 78, "newfstatat": 79, "fstat": 80, "exit": 93,
    "exit_group": 94, "futex": 98, "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114, "clock_nanosleep": 115,
    "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134,
    "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "uname": 160, "getrlimit": 163, "getrusage": 165,
    "gettimeofday": 169, "getpid": 172, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178,
    "sysinfo": 179, "brk": 214, "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233,
    "getrandom": 278, "statx": 291, "rseq": 293, "faccessat2": 439,
}  # fmt: skip
MACHINES = {
    "x86_64": (0xC000003E, X86_64, {"open": 2, "openat": 257}),
    "aarch64": (0xC00000B7, AARCH64, {"openat": 56}),
}
LOAD, EQUAL, ANY_BIT, GIVE = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JSET|K, BPF_RET|K
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # SECCOMP_RET_ALLOW, _ERRNO (EPERM), _KILL_PROCESS
ARCHITECTURE, NUMBER, ARGUMENTS = 4, 0, 16  # offsets in struct seccomp_data
X32 = 0x40000000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2


def main() -> None:
    request: dict[str, Any] = json.load(sys.stdin)
    answer = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    outcome, detail = "refused", ""
    try:
        bound(request["seconds"], request["memory_bytes"])
    except (OSError, ValueError) as error:
        detail = str(error)
    else:
        outcome, detail = tried(request["code"], request["tests"])
    os.write(answer, json.dumps({"word": request["word"], "outcome": outcome, "detail": detail[:200]}).encode())
    os._exit(0)


def tried(code: str, tests: str) -> tuple[str, str]:
    module: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(code, "answer.py", "exec"), module)
        exec(compile(tests, "tests.py", "exec"), module)
    except BaseException as error:  # whatever a stranger's code raises, SystemExit too, is a failure of its own
        return "failed", type(error).__name__
    return "passed", ""


def bound(seconds: float, memory_bytes: int) -> None:
    """Limit this process for good. Raises OSError where the system has no such filter."""
    whole = max(1, int(seconds + 0.999))
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))  # SIGXCPU, which tells time from other ends
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 4096),  # the answer goes through a pipe, which this doesn't count
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        raise OSError(f"no filter of system calls for {sys.platform} on {platform.machine()}")
    program = filter_program(*MACHINES[platform.machine()])
    memory = ctypes.create_string_buffer(program)
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER, head, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), f"prctl {arguments[0]}: {os.strerror(ctypes.get_errno())}")


def filter_program(architecture: int, allowed: dict[str, int], opening: dict[str, int]) -> bytes:
    """The filter: struct sock_filter (code, jump if true, jump if false, k) by struct sock_filter."""
    steps = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, architecture), (GIVE, 0, 0, KILL), (LOAD, 0, 0, NUMBER)]
    steps += [(ANY_BIT, 0, 1, X32), (GIVE, 0, 0, REFUSE)]
    for name, number in opening.items():  # allowed without a flag that writes
        flags = ARGUMENTS + 8 * (1 if name == "open" else 2)
        steps += [(EQUAL, 0, 4, number), (LOAD, 0, 0, flags), (ANY_BIT, 1, 0, WRITES), (GIVE, 0, 0, ALLOW)]
        steps += [(GIVE, 0, 0, REFUSE)]
    for number in allowed.values():
        steps += [(EQUAL, 0, 1, number), (GIVE, 0, 0, ALLOW)]
    steps += [(GIVE, 0, 0, REFUSE)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
