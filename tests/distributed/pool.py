"""Processes that stay, joined by gloo, and run one check after another: starting them is what costs."""

import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import interpreter
import torch
import torch.distributed as dist
from torch import multiprocessing

# Far beyond what any check takes, on whatever machine: only a hang meets it.
LIMIT_S = 120


class Pool:
    """`size` processes; `run` has the first of them call a function, all at once."""

    def __init__(self, size):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = str(Path(self._folder.name) / "meeting")
        self._processes, self._pipes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, meeting, rank, size), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def run(self, check, *arguments, processes=None):
        """Returns check(rank, group, *arguments) of each of the first `processes`; raises their errors."""
        pipes = self._pipes[:processes]
        for pipe in pipes:
            pipe.send((check, len(pipes), arguments))
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(LIMIT_S), f"process {rank} has not answered in {LIMIT_S} s"
        answers = [pipe.recv() for pipe in pipes]
        errors = [f"process {rank}:\n{answer}" for rank, (ok, answer) in enumerate(answers) if not ok]
        assert not errors, "\n".join(errors)
        return [answer for _, answer in answers]

    def close(self):
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(LIMIT_S)
        self._folder.cleanup()


def _serve(pipe, meeting, rank, size):
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        interpreter.find_once()
    limit = timedelta(seconds=LIMIT_S / 2)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=limit)
    groups = {n: dist.new_group(list(range(n))) for n in range(2, size)} | {size: dist.group.WORLD}
    while True:
        try:
            check, processes, arguments = pipe.recv()
        except EOFError:
            return
        torch.manual_seed(0)
        try:
            pipe.send((True, check(rank, groups[processes], *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
