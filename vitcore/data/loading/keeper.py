"""The keeper: a process that decodes nothing and forks the workers that do, as `vitcore.data.loading.processes` asks.

It is started afresh, so it has nothing of the trainer, of the device or of its threads. It imports what decoding needs
once, and its forks share that memory and start in milliseconds. It is the guardian too: when the trainer is gone it kills
the workers and leaves.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import traceback
from contextlib import suppress

from vitcore.data.loading.wire import Wire, wait_for

# Seconds between two looks whether the trainer still lives, for the case that somebody else holds its end of the wire.
LOOK_EVERY = 1.0
# Imported before the forks where it is there; who needs it and lacks it says so.
SHARED_IMPORTS = ("PIL.Image", "simplejpeg")
# Where policies change the pictures, too; else a worker that meets a file which only torchvision decodes imports it then, and
# no first batch waits for it.
POLICY_IMPORTS = ("torchvision.io", "torchvision.transforms.v2.functional")


def keep(fd: int, policies: bool = False) -> None:
    """Fork workers and tell how they ended, as the wire asks, until it closes."""
    # An interrupt is for the trainer, which ends in good order and then closes the wire.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, wire, workers = os.getppid(), Wire(socket.socket(fileno=fd)), set[int]()
    try:
        importlib.import_module("torch").set_num_threads(1)
        importlib.import_module("vitcore.data.loading.worker")
        for name in (*SHARED_IMPORTS, *(POLICY_IMPORTS if policies else ())):
            with suppress(ImportError):
                importlib.import_module(name)
    except Exception as error:  # ImportError, and what libraries raise that do not fit
        wire.send("error", f"{type(error).__name__}: {error}")
        return
    try:
        wire.send("ready")
        while os.getppid() == parent:
            if not wait_for([wire], LOOK_EVERY):
                continue
            order, *rest = wire.receive()
            if order == "fork":
                end = wire.receive_fd()
                workers.add(pid := _fork(wire, end))
                wire.send(pid)
            elif rest[0] in workers:  # "ended": its wire is closed, so it has no more to do
                workers.discard(rest[0])
                wire.send(_end(rest[0]))
            else:  # a worker of the keeper before this one; its number may be another process's by now
                wire.send(None)
    except (EOFError, OSError):  # the trainer is gone, or has enough
        pass
    finally:
        for pid in workers:
            _end(pid)
        # Taking down an interpreter with all its libraries takes a second, and somebody waits.
        os._exit(0)


def _fork(wire: Wire, fd: int) -> int:
    pid = os.fork()
    if pid == 0:
        # Whatever happens, a worker never returns into the keeper's loop.
        code = 1
        try:
            from vitcore.data.loading.worker import work

            wire.close()
            work(Wire(socket.socket(fileno=fd)))
        except (OSError, EOFError):
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(fd)
    return pid


def _end(pid: int) -> int:
    """The exit code of a worker, negative for a signal. One that has not ended is killed; one that has keeps its code."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
