"""Runs all programs of a launch at once in Triton's interpreter, which runs one after another: barriers open here.

Every program is a thread, and one thread runs at a time. At each atomic operation and each store of a tile the turn
may pass to another program, chosen by a seeded generator, so that many orders are seen and each can be seen again. It
is stricter than a GPU in nothing but memory's order, which here is that of the turns.
"""

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Semaphore, Thread

from triton.runtime.interpreter import GridExecutor, _implicit_cvt, _patch_lang, interpreter_builder

# Turns without an end of the launch after which its programs are taken to wait for each other for ever.
PATIENCE = 200_000


class Deadlock(Exception):
    """The programs of a launch wait for each other, or for one that is not there."""


class _Schedule:
    def __init__(self, programs, body, generator):
        self.programs = programs
        self.generator = generator
        self.turn = {program: Semaphore(0) for program in programs}
        self.live = list(programs)
        self.ended = Semaphore(0)
        self.current = None
        self.turns = 0
        self.error = None
        self.threads = [Thread(target=self._run, args=(program, body), daemon=True) for program in programs]

    def run(self):
        for thread in self.threads:
            thread.start()
        self._pass_on()
        self.ended.acquire()
        if self.error is not None:
            raise self.error

    def _pass_on(self):
        self.current = self.generator.choice(self.live)
        interpreter_builder.set_grid_idx(*self.current)
        self.turn[self.current].release()

    def _run(self, program, body):
        self.turn[program].acquire()
        try:
            body()
        except Exception as error:
            self.error = error
        self.live.remove(program)
        if self.error is None and self.live:
            self._pass_on()
        else:
            self.ended.release()  # after an error the others wait for ever: they are daemons

    def pause(self):
        """Lets another program run, or the same one."""
        self.turns += 1
        if self.turns > PATIENCE:
            raise Deadlock(f"{len(self.live)} of {len(self.programs)} programs still run after {PATIENCE} turns")
        mine = self.current
        self._pass_on()
        self.turn[mine].acquire()


@contextmanager
def interleaved(seed: int) -> Iterator[list[int]]:
    """Within, the programs of every launch run interleaved; yields a list to which each adds its number of turns."""
    generator = random.Random(seed)
    turns: list[int] = []
    schedule = None
    call = GridExecutor.__call__
    accesses = ("create_atomic_rmw", "create_masked_store")

    def launch(self, *args, **kwargs):
        nonlocal schedule
        names = inspect.getfullargspec(self.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in names}
        scope = _patch_lang(self.fn)
        try:
            named = inspect.getcallargs(self.fn, *args, **kwargs)
            named = {n: a if n in self.constexprs else _implicit_cvt(a) for n, a in named.items()}
            grid = (*(self.grid(named) if callable(self.grid) else self.grid), 1, 1)[:3]
            interpreter_builder.set_grid_dim(*grid)
            programs = [(x, y, z) for x in range(grid[0]) for y in range(grid[1]) for z in range(grid[2])]
            schedule = _Schedule(programs, lambda: self.fn(**named), generator)
            schedule.run()
            turns.append(schedule.turns)
        finally:
            scope.restore()
            schedule = None

    def pausing(access):
        def paused(*args):
            schedule.pause()
            return access(*args)

        return paused

    GridExecutor.__call__ = launch
    for name in accesses:
        setattr(interpreter_builder, name, pausing(getattr(interpreter_builder, name)))
    try:
        yield turns
    finally:
        GridExecutor.__call__ = call
        for name in accesses:
            delattr(interpreter_builder, name)
