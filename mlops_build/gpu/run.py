"""Run a program with a lease: `gpu run` stays as the program's parent.

The child takes the lease and becomes the program by exec, so the lease belongs to the program and its descendants, and ends with them. The
parent reports the program's memory, forwards signals, and ends as the program ends. If the parent is killed, the lease stays.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable

from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.lease import MEMORY_VARIABLE, Lease
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.report import Reporter

FORWARDED = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH}
_FROM_TERMINAL = 128  # SI_KERNEL: the terminal sends such a signal to all processes of the foreground group
MOST_TEXT = 65536


def run(command: list[str], take: Callable[[], Lease]) -> int:
    """Take a lease, run a program with it, and return its exit status. Raises what `take` raises, and OSError if the program cannot be run.

    These errors are raised in the child. In the parent the result is the status with which the child ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored, a parent does not learn of the end of its child
    lease_of_child, to_parent = socket.socketpair()
    parent, child = os.getpid(), os.fork()
    if child:
        to_parent.close()
        threading.Thread(target=_report, args=(lease_of_child,), daemon=True).start()
        return _end_like(_wait(child), before)
    signal.signal(signal.SIGCHLD, of_children)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    lease_of_child.close()
    lease = take()
    if os.getppid() != parent:  # it was killed while this process waited, so nobody expects the program any longer
        lease.release()
        return 1
    if not lease.cpu:  # a program that calls gpu.lease() without a budget requests what it has
        os.environ[MEMORY_VARIABLE] = str(lease.memory_bytes)
    if lease.descriptor is not None:
        with contextlib.suppress(BrokenPipeError):  # the parent was killed
            socket.send_fds(to_parent, [json.dumps([lease.id, dict(lease.before)]).encode()], [lease.descriptor])
    for variable in ("LISTEN_PID", "WATCHDOG_PID"):  # systemd's sockets and watchdog are for the program
        if os.environ.get(variable) == str(os.getppid()):
            os.environ[variable] = str(os.getpid())
    # Python ignores these two signals; programs expect the default, so that `CMD | head` ends CMD.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 -- no shell, on purpose
    finally:
        lease.release()


def _report(lease_of_child: socket.socket) -> None:
    """Report the memory of the child's lease. Holds the lease, too: the program may close all descriptors that it does not know."""
    text, *_ = socket.recv_fds(lease_of_child, MOST_TEXT, 1)
    if not text:  # the child has ended, or shares the lease of an ancestor
        return
    lease_id, before = json.loads(text)
    with contextlib.suppress(NoLedger):  # the directory was removed; the child has said so
        ledger = Ledger.open()
        promise = ledger.lease(lease_id)
        if promise is not None:
            Reporter(ledger, promise, before).run()


def _wait(child: int) -> int:
    """Forward signals to the child until it ends; its status as os.waitpid returns it. Reaps orphans, too, as the first process of a
    container must."""
    while True:
        received = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != _FROM_TERMINAL or os.getpgid(child) != os.getpgrp():
                os.kill(child, received.si_signo)
            continue
        ended = -1
        while ended:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == child:
                return status


def _end_like(status: int, mask: set[signal.Signals | int]) -> int:
    """The exit code for this status. If a signal ended the child, this process ends by the same signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program's core dump is enough
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.kill(os.getpid(), -code)
    return 128 - code if code < 0 else code  # the first process of a container ignores signals that it sends to itself
