"""Measures cells in this process, or in one that may crash, hang or be killed and is then replaced.

A worker gets one case at a time, with the providers to measure, and answers with each cell that has ended. Between the
answers it names the provider whose code runs, so that the parent knows which cell to blame when the worker dies or
stops answering: that cell gets its status and reason, and a new worker measures the rest of the case.

Workers come from multiprocessing's fork server, which has imported torch and touched no device: a new worker takes a
fraction of a second, and nothing of the last one is left in it.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from bench.cases.case import Case
from bench.measure import accuracy, timing
from bench.measure.cell import DeviceLost, FinishedCell, Problem, RunSettings, check_device_alive
from bench.measure.ending import ending
from bench.measure.kept import KeptReferences
from bench.measure.providers import Provider

# Long enough for any compiler's autotuning, and for a large case in the interpreter; --cell-timeout changes it.
SILENCE_S = 600.0
# A worker that was asked to stop has nothing left to do.
_STOP_S = 5.0
BUDGET_SPENT = "the time budget was spent"
# What triton reads when it is imported; the fork server has the environment of the time it was started.
_SWITCHES = ("TRITON_INTERPRET",)

Ended = Callable[[FinishedCell], None]
Began = Callable[[str], None]


class InProcess:
    """Measures in this process, for debuggers and notebooks. A crash or a hang takes the whole run with it."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._problem: Problem | None = None
        self._kept = KeptReferences()

    def copy_gbps(self) -> float | None:
        return timing.copy_bandwidth(self._settings.device)

    def measure(
        self,
        case: Case,
        providers: Iterable[Provider],
        finished: Ended,
        began: Began,
        deadline: float = float("inf"),
        graphless: Collection[str] = (),
    ) -> None:
        """Measures as `Worker.measure`; ignores `deadline`, as no cell can be stopped from within."""
        if self._problem is None or self._problem.case != case.problem:
            self.close()
            self._problem = Problem(case.problem, self._settings, self._kept)
        self._problem.measure(case, providers, finished, began, graphless)

    def close(self) -> None:
        if self._problem is not None:
            self._problem.release()
            self._problem = None


class Worker:
    """Measures in a process of its own, which is replaced when it is lost.

    A worker that says nothing for `silence` seconds is taken for hung. Providers and operators reach it by pickle, so
    their classes must be importable.
    """

    def __init__(self, settings: RunSettings, silence: float = SILENCE_S) -> None:
        self._settings, self._silence = settings, silence
        # A fork of this process would inherit its threads' locks and its CUDA context, neither of any use.
        self._context = multiprocessing.get_context("forkserver")
        # What every backward pass imports; on a CPU, where that touches no device, also what is to be measured.
        measured = [__name__, "normlib"] if settings.device.type == "cpu" else []
        imported = ["torch.fx.experimental.symbolic_shapes", "pandas", "scipy.special"]
        self._context.set_forkserver_preload(imported + measured)
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._idle = False
        # Whose CUDA graph has spoiled a worker, by operator and mode: once is enough.
        self._graphless: set[tuple[str, str, str]] = set()

    def copy_gbps(self) -> float | None:
        """Returns GB/s of a large copy on the device, None on a CPU; raises RuntimeError where it cannot be had."""
        if self._settings.device.type != "cuda":
            return None
        pipe = self._started()
        pipe.send(b"")
        pipe.send(None)
        try:
            nothing = (b"", "", f"nothing for {self._silence:g} s")
            _, word, answer = pipe.recv() if pipe.poll(self._silence) else nothing
        except (EOFError, OSError):
            word, answer = "", self._death()[1]
        if word != "copy":
            self._kill()
            raise RuntimeError(f"the copy bandwidth cannot be measured: {answer}")
        assert isinstance(answer, float)
        return answer

    def measure(
        self, case: Case, providers: Iterable[Provider], finished: Ended, began: Began, deadline: float = float("inf")
    ) -> None:
        """Calls `finished` with each of these providers' cells when it has ended; raises DeviceLost.

        No two providers have the same name. `began` is called with that of the provider whose code runs from then on.
        At `deadline` (of time.monotonic) what has not ended is stopped and skipped.
        """
        waiting = {provider.name: provider for provider in providers}
        while waiting:
            loss = self._pass(case, waiting, finished, began, deadline)
            if loss is None:
                return
            self._kill()
            running, status, reason = loss
            for name in [running] if running else list(waiting):
                if waiting.pop(name, None):  # else it had ended before
                    finished(FinishedCell(self._settings.record(case, name, status, reason)))

    def close(self) -> None:
        """Ends the worker; may be called twice."""
        if self._idle and self._pipe is not None and self._process is not None:
            self._pipe.close()
            self._process.join(_STOP_S)
        self._kill()

    def _pass(
        self, case: Case, waiting: dict[str, Provider], finished: Ended, began: Began, deadline: float
    ) -> tuple[str, str, str] | None:
        """Tries the case once; removes what has ended from `waiting`.

        Returns None where the worker lives on. Where it was lost: the provider that was running, "" for none, and the
        status and reason for its cell, or for all that are waiting.
        """
        running = ""
        self._idle = False
        try:
            pipe = self._started()
            graphless = [name for name in waiting if (case.op, case.mode, name) in self._graphless]
            token = secrets.token_bytes(16)
            pipe.send(token)
            pipe.send((case, tuple(waiting.values()), graphless))
            while True:
                patience = min(self._silence, max(0.0, deadline - time.monotonic()))
                if not pipe.poll(patience):
                    if time.monotonic() >= deadline:
                        return "", "skipped", BUDGET_SPENT
                    return running, "timeout", f"nothing was heard of it for {self._silence:g} s"
                said_with, word, said = pipe.recv()
                forged = said_with != token and word not in ("lost", "failed")  # which may come before the token
                if forged or (word == "finished" and not self._genuine(said, case, waiting)):
                    return running, "crash", "its process sent a message that the instrument did not"
                if word == "began":
                    running = said
                    began(said)
                elif word == "finished":
                    del waiting[said.record.provider]
                    finished(said)
                    if said.poisoned:
                        self._graphless.add((case.op, case.mode, said.record.provider))
                        return said.record.provider, "", ""
                elif word == "lost":
                    if not running:
                        raise DeviceLost(said)
                    return running, "crash", said
                elif word == "unreadable":
                    return "", "crash", said
                elif word == "failed":
                    raise RuntimeError(said)
                else:
                    self._idle = True
                    return None
        except (EOFError, OSError):
            return running, *self._death()

    def _genuine(self, said: FinishedCell, case: Case, waiting: Mapping[str, Provider]) -> bool:
        """Returns whether this can be a cell of the case: the verdict follows from the errors, and none is missing."""
        record = said.record
        if record.case != case or record.provider not in waiting:
            return False
        judged = {error.tensor for error in record.errors}
        complete = judged >= set(self._settings.operators[case.op].outputs(case.mode))
        return record.status != "ok" or (complete and accuracy.verdict(record.errors)[0] == "ok")

    def _started(self) -> Connection:
        if self._pipe is None:
            self._pipe, theirs = self._context.Pipe()
            environment = {name: value for name in _SWITCHES if (value := os.environ.get(name)) is not None}
            self._process = self._context.Process(target=_serve, args=(theirs, environment), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.send(self._settings)
        return self._pipe

    def _death(self) -> tuple[str, str]:
        """Returns the status and reason of a worker that has closed its end."""
        assert self._process is not None
        self._process.join(_STOP_S)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return "oom", "its process was killed, as a system does that runs out of memory"
        if code is not None and code < 0:
            return "crash", f"its process died of {signal.Signals(-code).name}"
        return "crash", f"its process ended with status {code}"

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def _serve(pipe: Connection, environment: Mapping[str, str]) -> None:
    """Runs in the worker: measures what comes through the pipe, and ends when that is closed."""
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(environment)  # before anything imports triton, which the next line does
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        settings: RunSettings = pipe.recv()
        here, token = InProcess(settings), b""

        def send(word: str, said: object) -> None:
            # What a provider's own code sends through the pipe has no token.
            pipe.send((token, word, said))

        try:
            check_device_alive(settings.device)
            while True:
                token = pipe.recv()
                try:
                    asked = pipe.recv()
                except (EOFError, OSError):
                    raise
                except Exception as error:  # a provider's class that cannot be imported here, say
                    send("unreadable", f"its process cannot load it: {ending(error)[1]}")
                    return
                if asked is None:
                    send("copy", here.copy_gbps())
                    continue
                case, providers, graphless = asked
                finished, began = partial(send, "finished"), partial(send, "began")
                here.measure(case, providers, finished, began, graphless=graphless)
                send("done", None)
        except DeviceLost as error:
            send("lost", str(error))
        except (EOFError, OSError):
            raise
        except Exception:
            send("failed", traceback.format_exc())


def _end_with_parent() -> None:
    """Ends this process with its parent: a hung worker would not notice that a killed parent has closed the pipe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
