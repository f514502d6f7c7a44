"""Runs a program on a pseudo-terminal, types into it, and captures its output."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence


def run_on_terminal(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    answers: Mapping[str, str] | None = None,
    interrupt_at: str | Sequence[str | Callable[[str], bool]] = (),
    columns: int = 100,
    limit: float = 60.0,
) -> tuple[int, str]:
    """Run a program. Each of `answers` is typed when its prompt appears, Ctrl-C at each of `interrupt_at` in turn.

    Ctrl-C is typed when a text appears, or when a function of the output, asked at each new piece, says so.

    Returns the exit status and the output.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        arguments, env=dict(environment), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    pending = dict(answers or {})
    interruptions = [interrupt_at] if isinstance(interrupt_at, str) else list(interrupt_at)
    shown = b""
    deadline = time.monotonic() + limit
    try:
        while data := _read(ours, deadline):
            shown += data
            text = shown.decode(errors="replace")
            for prompt in [prompt for prompt in pending if prompt in text]:
                os.write(ours, pending.pop(prompt).encode())
            if interruptions and _is_due(interruptions[0], text):
                del interruptions[0]
                # As a terminal does on Ctrl-C: signals the whole process group, including an engine.
                os.killpg(process.pid, signal.SIGINT)
        return process.wait(max(0.1, deadline - time.monotonic())), shown.decode(errors="replace")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(ours)


def _is_due(moment: str | Callable[[str], bool], shown: str) -> bool:
    return moment in shown if isinstance(moment, str) else moment(shown)


def _read(terminal: int, deadline: float) -> bytes:
    """Return the next output; b"" at the end, or at the deadline."""
    readable, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
    try:
        return os.read(terminal, 65536) if readable else b""
    except OSError:  # Linux raises EIO when the last process has closed the terminal
        return b""
