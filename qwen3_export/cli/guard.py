"""A command in a process of its own, so that a runtime which crashes on a damaged artifact leaves a sentence behind.

Runtimes are native code, and some end the whole process on a file that they did not expect. The commands that open
artifacts therefore fork before anything heavy is imported: the child does the work, and the parent waits and tells how
the child ended. This costs some milliseconds. A signal that is sent to the parent alone goes on to the child; one from
the terminal reaches both by itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["artifact", "guard", "opens_artifact"]

COMMANDS = frozenset({"check", "lint", "inspect", "run"})
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# From the terminal, by the kernel (sigaction's SI_KERNEL).
FROM_TERMINAL = 128
PR_SET_PDEATHSIG = 1


def guard(arguments: Sequence[str]) -> None:
    """Return in the process that shall do the work; another waits for it, and exits with its code.

    Where this is not possible (not Linux, or threads are running already), the one process goes on.
    """
    if not opens_artifact(arguments) or not _can_fork():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    waited = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    code = _wait(child, waited)
    if code < 0:
        print(f"qwen3-export: {_sentence(-code, arguments)}", file=sys.stderr)
    sys.exit(code if code >= 0 else 1)


def _wait(child: int, waited: set[signal.Signals]) -> int:
    """The child's exit code, or minus the signal that ended it."""
    while True:
        told = signal.sigwaitinfo(waited)
        if told.si_signo == signal.SIGCHLD:
            found, status = os.waitpid(child, os.WNOHANG)
            if found == child:
                return os.waitstatus_to_exitcode(status)
        elif told.si_code != FROM_TERMINAL:
            os.kill(child, told.si_signo)


def _sentence(number: int, arguments: Sequence[str]) -> str:
    name = signal.Signals(number).name
    path = artifact(arguments)
    if number == signal.SIGKILL:
        return f"{path}: the process that read it was killed ({name}), most likely for want of memory"
    return (
        f"{path}: the process that read it crashed ({name}); the file is damaged, or its runtime does not know such "
        "files; copy or export it again"
    )


def artifact(arguments: Sequence[str]) -> str:
    """The artifact's path as it was typed."""
    words = [word for word in arguments if not word.startswith("-")]
    return next((word for word in words[1:] if Path(word).exists()), "the artifact")


def opens_artifact(arguments: Sequence[str]) -> bool:
    """Whether these are the arguments of a command that reads an artifact."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return command in COMMANDS and not {"--help", "-h"} & set(arguments)


def _can_fork() -> bool:
    try:
        return hasattr(os, "fork") and len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False


def _end_with(parent: int) -> None:
    """Ask Linux to stop this process where its parent is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)
