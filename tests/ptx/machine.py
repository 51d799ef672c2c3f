"""Executes a program: control flow, barriers, atomics, copies, and the order in which accesses are known to happen.

A kernel without atomics runs many thread blocks side by side. A kernel with atomics runs each block by itself, in turns
of random length and order: a barrier that spins makes progress, and any order can be had again from its seed. While the
threads of a block diverge, the lowest part of the program goes first, so that they meet again. With `skewed` the warps
run one at a time instead, in random order, each as far as it comes.

Within a block accesses are ordered by bar.sync, within a warp by bar.warp.sync too, and between blocks by release and
acquire: a block's clock says up to which epoch of every other block it knows what was done there.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ptx import arithmetic
from ptx.arithmetic import U1, U2, U4, U8
from ptx.memory import NOBODY, Fault, SharedMemory
from ptx.translation import Translator

LANES = 8192  # threads side by side
PATIENCE = 300  # turns of each block without progress before they are taken to wait for ever
EPOCH = 1 << 12  # from one bar.sync to the next; barriers of a warp count in ones
QUANTUM = 24  # parts of a program in a turn, at most


class Deadlock(Exception):
    """Blocks wait for each other, or for one that is not there; or threads for others that have ended."""


class Launch:
    """One launch on a memory; `run` fills `findings` with (kind, what, PTX) and how often."""

    def __init__(self, program, grid, parameters, memory, shared, *, seed=0, skewed=False, approx="exact",
                 resident=None):  # fmt: skip
        self.program, self.parameters, self.memory, self.shared = program, parameters, memory, shared
        self.grid = (*grid, 1, 1)[:3]
        self.rng = np.random.default_rng(seed)
        self.skewed, self.exact, self.resident = skewed, approx == "exact", resident
        self.findings = Counter()
        self.progress = 0
        gx, gy, gz = self.grid
        self.blocks = [(x, y, z) for z in range(gz) for y in range(gy) for x in range(gx)]
        n = len(self.blocks)
        self.epoch = np.full(n, EPOCH)
        # By block, the epoch of every block before which all is known; None where nothing is ever known.
        self.clock = np.zeros((n, n), np.int32) if program.atomic else None
        self.released = {}  # by place, what whoever acquires it there gets to know
        self.acquired = {}  # by block, (thread, clock) until bar.sync passes it on to the other threads
        self.fenced, self.unfenced = {}, {}  # by thread, the clocks that a fence makes releases and acquires of

    def function(self, part, masked):
        known = self.program.functions
        if (part, masked) not in known:
            known[part, masked] = Translator(self.program, part, masked).function()
        return known[part, masked]

    def run(self):
        n = len(self.blocks)
        with np.errstate(all="ignore"):
            if self.program.atomic:
                self._interleave(n)
            else:
                side_by_side = max(LANES // self.program.threads, 1)
                for first in range(0, n, side_by_side):
                    machine = Machine(self, range(first, min(first + side_by_side, n)))
                    while machine.step():
                        pass
        return self

    def _interleave(self, n):
        waiting = [*self.rng.permutation(n)]
        live = [Machine(self, [waiting.pop()]) for _ in range(min(self.resident or n, n))]
        seen, quiet = self.progress, 0
        while live:
            k = int(self.rng.integers(len(live)))
            for _ in range(int(self.rng.integers(1, QUANTUM + 1))):
                if not live[k].step():
                    live.pop(k)
                    self.progress += 1
                    live += [Machine(self, [waiting.pop()])] if waiting else []
                    break
            seen, quiet = self.progress, quiet + 1 if self.progress == seen else 0
            if quiet > PATIENCE * len(live) and live:
                raise Deadlock(f"{len(live)} of {n} blocks wait, {len(waiting)} never began")


class Machine:
    """Some blocks of a launch, their threads side by side: an element of every array for each."""

    def __init__(self, launch, blocks):
        self.launch, self.program = launch, launch.program
        self.blocks = np.array(blocks)
        t, count = self.program.threads, len(self.blocks)
        self.n = count * t
        self.block, self.index = np.repeat(self.blocks, t), np.repeat(np.arange(count), t)
        tid = np.tile(np.arange(t), count)
        self.thread, self.warp, self.lane = self.block * t + tid, tid // 32, tid % 32
        self.everyone = np.arange(self.n)
        at = np.array([launch.blocks[block] for block in self.blocks], U4)
        self.specials = {"%tid.x": tid, "%laneid": self.lane, "%warpid": self.warp, "%ntid.x": np.full(self.n, t)}
        for k, axis in enumerate("xyz"):
            self.specials[f"%ctaid.{axis}"] = np.repeat(at[:, k], t)
            self.specials[f"%nctaid.{axis}"] = np.full(self.n, launch.grid[k])
            self.specials.setdefault(f"%tid.{axis}", np.zeros(self.n))
        self.specials = {name: values.astype(U4) for name, values in self.specials.items()}
        zeros = {"b16": np.zeros(self.n, U2), "b32": np.zeros(self.n, U4), "b64": np.zeros(self.n, U8)}
        zeros["pred"] = np.zeros(self.n, np.bool_)
        self.registers = [zeros[t if t == "pred" else "b" + t[1:]] for t in self.program.registers.values()]
        self.epoch = launch.epoch[self.block]  # of each thread, its warp's barriers included
        self.global_memory = launch.memory
        self.shared_memory = SharedMemory(launch.shared, count, launch.memory.grain, t)
        self.copies = []  # under way: [threads, places, bytes, groups]
        self.committed = np.zeros(self.n, np.int64)  # groups of copies
        # Where each thread is, in one number while all are at the same part and none waits at a barrier.
        self.part = np.zeros(self.n, np.int64) if launch.skewed else 0
        self.waiting, self.turn = np.zeros(self.n, np.bool_), None

    def report(self, kind, what, line):
        self.launch.findings[kind, what, line] += 1

    # control

    def step(self):
        """Runs one part of the program; returns False when all threads have ended."""
        parts = self.program.blocks
        if isinstance(self.part, int):
            part, mask = self.part, None
        else:
            ready = np.where(self.waiting, len(parts), self.part)
            if self.launch.skewed:
                ready = self._one_warp(ready)
            part = int(ready.min())
            mask = ready == part
        if part == len(parts):
            if self.waiting.any():
                raise Deadlock("threads wait at bar.sync for others that have ended")
            return False
        taken = self.launch.function(part, mask is not None)(self, self.registers, mask)
        last = parts[part][-1]
        after = part + 1
        if last.op in ("ret", "exit"):
            after = len(parts)
        elif last.op == "bra":
            target = self.program.target[last.args[0][1]]
            after = target if taken is None else np.where(taken, target, after)
        if mask is not None:
            self.part = np.where(mask, after, self.part)
            if last.op == "bar":
                self.waiting |= mask
                self._open_barriers()
        else:
            self.part = after
            if last.op == "bar":
                self._pass_barrier(self.blocks)
        if not isinstance(self.part, int) and not self.launch.skewed and not self.waiting.any():
            self.part = int(self.part[0]) if (self.part == self.part[0]).all() else self.part
        return True

    def _one_warp(self, ready):
        """Returns `ready` with all but one warp of each block held back: the same one until it comes no further."""
        end = len(self.program.blocks)
        if self.turn is None or (ready[self.warp == self.turn] == end).all():
            able = np.unique(self.warp[ready < end])
            self.turn = self.launch.rng.choice(able) if able.size else None
        return ready if self.turn is None else np.where(self.warp == self.turn, ready, end)

    def _open_barriers(self):
        ended = self.part == len(self.program.blocks)
        arrived = (self.waiting | ended).reshape(len(self.blocks), -1).all(1)
        arrived &= self.waiting.reshape(len(self.blocks), -1).any(1)
        self.waiting &= ~arrived[self.index]
        self._pass_barrier(self.blocks[arrived])

    def _pass_barrier(self, blocks):
        self.launch.epoch[blocks] += EPOCH
        passed = True if len(blocks) == len(self.blocks) else np.isin(self.block, blocks)
        self.epoch = np.where(passed, self.launch.epoch[self.block], self.epoch)
        for block in blocks:
            if found := self.launch.acquired.pop(int(block), None):
                np.maximum(self.launch.clock[block], found[1], out=self.launch.clock[block])

    def pass_warp_barrier(self, active, line):
        self._whole_warps(active, line)
        self.epoch = self.epoch + (1 if active is None else active)

    # values

    def full(self, value):
        return value if getattr(value, "shape", ()) else np.full(self.n, value)

    def parameter(self, at, dtype):
        return np.full(self.n, self.launch.parameters[at].astype(dtype))

    def approximate(self, value, ulps):
        return value if self.launch.exact else arithmetic.approximate(value, ulps)

    def _whole_warps(self, active, line):
        if active is not None:
            by_warp = active.reshape(-1, 32)
            if (by_warp.any(1) != by_warp.all(1)).any():
                self.report("fault", "an instruction of the whole warp without all lanes", line)

    def shuffled(self, a, b, how, active, line):
        self._whole_warps(active, line)
        b = np.asarray(b).astype(np.int64)
        if how == "bfly":
            return a[self.everyone ^ b]
        source = b & 31 if how == "idx" else self.lane - b if how == "up" else self.lane + b
        return a[self.everyone - self.lane + np.where((source < 0) | (source > 31), self.lane, source)]

    def reduced(self, a, ufunc, active, line):
        self._whole_warps(active, line)
        return ufunc.reduce(a.reshape(-1, 32), 1).astype(a.dtype).repeat(32)

    # memory

    def _locate(self, space, address, active, size, line, align=0):
        """Returns the active threads, and where in the space's bytes each finds its `size` bytes."""
        lanes = self.everyone if active is None else np.flatnonzero(active)
        address = self.full(address).astype(np.int64)[lanes]
        at, outside = space.place(address, self.index[lanes], size)
        if outside.any():
            block = self.launch.blocks[self.block[lanes[outside.argmax()]]]
            raise Fault(f"out of bounds in {outside.sum()} threads, the first of block {block}: {line}")
        if (address & ((align or size) - 1)).any():
            raise Fault(f"misaligned: {line}")
        return lanes, at

    def load(self, space, address, active, size, count, line, order):
        lanes, at = self._locate(space, address, active, size * count, line)
        if order in ("acquire", "relaxed", "volatile"):
            for lane, place in zip(lanes, at, strict=True):
                self._acquire(int(lane), int(place), order)
        else:
            self._touch(space, lanes, at, size * count, line)
        found = []
        for k in range(count):
            values = space.views[size][at // size + k]
            if active is not None:
                values, some = np.zeros(self.n, values.dtype), values
                values[lanes] = some
            found.append(values)
        return found

    def store(self, space, address, active, size, values, line, order=None):
        lanes, at = self._locate(space, address, active, size * len(values), line)
        self.launch.progress += not space.shared
        view, values = space.views[size], [self.full(value)[lanes] for value in values]
        # Threads that hold copies of a value may all store it in shared memory.
        changed = np.any([view[at // size + k] != value for k, value in enumerate(values)], 0) | (not space.shared)
        self._touch(space, lanes, at, size * len(values), line, changed)
        if order in ("release", "relaxed"):
            for lane, place in zip(lanes, at, strict=True):
                self._release(int(lane), int(place), order)
        for k, value in enumerate(values):
            view[at // size + k] = value
            if (view[at // size + k] != value).any():
                self.report("race", "threads write different values to a word at once", line)

    def _touch(self, space, lanes, at, size, line, changed=None):
        """Looks for races with earlier accesses and notes this one, which writes unless `changed` is None."""
        if not lanes.size:
            return
        thread, block, epoch = self.thread[lanes], self.block[lanes], self.epoch[lanes]
        word, writes = space.words(at, size), changed is not None
        if space.shared and self.copies and space.under_way[word].any():
            self.report("race", "memory is used while a copy to it is under way", line)
        if writes:
            earlier = {
                "write after write": (space.writer, space.written),
                "write after read": (space.reader, space.read),
            }
        else:
            earlier = {"read after write": (space.writer, space.written)}
            if space.shared and (space.writer[word] == NOBODY).any():
                self.report("race", "shared memory is read that nobody wrote", line)
        for kind, (last, when) in earlier.items():
            by, by_epoch = last[word], when[word]
            racing = self._unordered(space, at, thread, block, epoch, by, by_epoch)
            if racing is not None and (racing & (by != NOBODY) & (by != thread) & (changed if writes else True)).any():
                self.report("race", f"{kind} in {'shared' if space.shared else 'global'} memory", line)
        if writes:
            space.note_write(word, thread, epoch)
        else:
            space.note_read(word, thread, block, epoch)

    def _unordered(self, space, at, thread, block, epoch, by, by_epoch):
        """Returns which accesses of threads `by` in their epochs nothing orders before those of `thread`, None if none.

        Threads that are NOBODY are no matter.
        """
        late = by_epoch >= epoch // EPOCH * EPOCH  # no bar.sync between them, if they are of one block
        if space.shared and not late.any():
            return None
        late &= (by_epoch >= epoch) | (by // 32 != thread // 32)
        if space.shared:
            return late
        by_block = space.block(by)
        same = block == by_block
        here = same & late & ~space.in_place[at]
        launch = self.launch
        if launch.clock is None:
            return here | ~same
        known = launch.clock[block, by_block]
        acquired, clock = launch.acquired.get(int(block[0]), (None, None))  # a machine has one block then
        if clock is not None:
            known = np.where(thread == acquired, np.maximum(known, clock[by_block]), known)
        return here | (~same & (known <= by_epoch))

    # order between blocks

    def _learn(self, lane, clock):
        if clock is not None:
            block, thread = int(self.block[lane]), int(self.thread[lane])
            _, mine = self.launch.acquired.get(block, (None, clock))
            self.launch.acquired[block] = thread, np.maximum(mine, clock)

    def _known(self, lane):
        """Returns the thread's clock: what it has done in earlier epochs of its block, and all that it has learned."""
        launch, block = self.launch, int(self.block[lane])
        known = launch.clock[block].copy()
        thread, clock = launch.acquired.get(block, (None, None))
        if thread == int(self.thread[lane]):
            np.maximum(known, clock, out=known)
        known[block] = launch.epoch[block]
        return known

    def _acquire(self, lane, place, order):
        found = self.launch.released.get(place)
        if found is not None and order in ("acquire", "acq_rel"):
            self._learn(lane, found)
        elif found is not None:
            _join(self.launch.unfenced, int(self.thread[lane]), found)

    def _release(self, lane, place, order):
        if order in ("release", "acq_rel"):
            _join(self.launch.released, place, self._known(lane))
        elif (clock := self.launch.fenced.get(int(self.thread[lane]))) is not None:
            _join(self.launch.released, place, clock)

    def fence(self, active):
        """What the thread read before is acquired, and what it writes later releases what it knows now."""
        if self.launch.clock is not None:
            for lane in self.everyone if active is None else np.flatnonzero(active):
                self._learn(int(lane), self.launch.unfenced.get(int(self.thread[lane])))
                self.launch.fenced[int(self.thread[lane])] = self._known(int(lane))

    def atomic(self, address, active, what, order, given, line):
        space = self.global_memory
        lanes, at = self._locate(space, address, active, 4, line)
        view, out = space.views[4], np.zeros(self.n, U4)
        for lane, place in zip(lanes.tolist(), at.tolist(), strict=True):
            self._acquire(lane, place, order)
            self._release(lane, place, order)
            old = out[lane] = view[place // 4]
            value = given[0][lane]
            new = {
                "add": old + value,
                "and": old & value,
                "exch": value,
                "cas": given[-1][lane] if old == value else old,
            }[what]
            view[place // 4] = new
            self.launch.progress += int(new != old)
        return out

    # asynchronous copies

    def copy(self, to, source, active, size, taken, line):
        """Begins to copy `taken` bytes and zeros behind them to shared memory, where they are when waited for."""
        space = self.shared_memory
        lanes, at = self._locate(space, to, active, size, line)
        data = np.zeros((self.n, size), U1)
        for count in np.unique(taken[lanes]):
            if count:
                those = (taken == count) & (True if active is None else active)
                threads, places = self._locate(self.global_memory, source, those, int(count), line, align=size)
                self._touch(self.global_memory, threads, places, int(count), line)
                data[threads, : int(count)] = self.global_memory.bytes[places[:, None] + np.arange(count)]
        self._touch(space, lanes, at, size, line, np.ones(lanes.size, np.bool_))
        space.under_way[space.words(at, size)] += 1
        self.copies.append([lanes, at, data[lanes], self.committed[lanes]])

    def commit_copies(self, active):
        self.committed += 1 if active is None else active

    def wait_for_copies(self, active, groups):
        """Ends each thread's copies but those of its last `groups` groups; -1 is also those that are in none."""
        space, left = self.shared_memory, []
        for lanes, at, data, group in self.copies:
            done = group < self.committed[lanes] - groups
            if active is not None:
                done &= active[lanes]
            space.bytes[at[done, None] + np.arange(data.shape[1])] = data[done]
            threads, epoch = self.thread[lanes[done]], self.epoch[lanes[done]]
            word = space.words(at[done], data.shape[1])
            space.under_way[word] -= 1
            space.note_write(word, threads, epoch)
            if not done.all():
                left.append([lanes[~done], at[~done], data[~done], group[~done]])
        self.copies = left

    def matrices(self, address, active, count, transposed, values, line):
        """ldmatrix and stmatrix: 8 x 8 of 16 bits; lanes 8k .. 8k + 7 have the rows of the k-th matrix."""
        self._whole_warps(active, line)
        address, first, lane, space = self.full(address), self.everyone - self.lane, self.lane, self.shared_memory
        found = []
        for k in range(count):
            if transposed:
                places = [address[first + 8 * k + 2 * (lane & 3) + h] + 2 * (lane >> 2) for h in (0, 1)]
            else:
                places = [address[first + 8 * k + (lane >> 2)] + 4 * (lane & 3)]
            size = 4 // len(places)
            if values is None:
                parts = [self.load(space, at, active, size, 1, line, None)[0].astype(U4) for at in places]
                found.append(parts[0] | (parts[1] << U4(16)) if transposed else parts[0])
                continue
            for h, at in enumerate(places):
                part = self.full(values[k]) >> U4(16 * h)
                self.store(space, at, active, size, (part.astype(U2 if transposed else U4),), line)
        return found


def _join(clocks, key, clock):
    """Adds what a clock knows to that of the key."""
    clocks[key] = clock if key not in clocks else np.maximum(clocks[key], clock)
