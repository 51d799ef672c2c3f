"""Memory: its bytes, and who touched each of its words last."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from operator import itemgetter

import numpy as np

from ptx.arithmetic import RAW, U1

BASE = 1 << 36  # where global memory begins
GUARD = 1 << 12  # bytes between buffers
NOBODY = -1


class Fault(Exception):
    """An access at which a GPU would fault, or whose result is undefined."""


class Space:
    """Bytes, and for each word of `grain` bytes its last writer, its last reader and their epochs.

    A thread's number is unique in the launch; its epoch is how many barriers its block has passed. Where several
    threads of a block have read a word in one epoch, the reader is -2 less the block's number.
    """

    shared = False

    def __init__(self, size, grain, threads):
        self.bytes = np.zeros(-(-max(size, 16) // 16) * 16, U1)
        self.views = {n: self.bytes.view(raw) for n, raw in RAW.items()}
        self.grain, self.threads = grain, threads
        words = len(self.bytes) // grain + 1
        self.writer, self.written = np.full(words, NOBODY, np.int32), np.zeros(words, np.int32)
        self.reader, self.read = np.full(words, NOBODY, np.int32), np.zeros(words, np.int32)
        self.under_way = np.zeros(words, np.int8)  # copies to it that nobody has waited for

    def block(self, thread):
        """Returns the thread's block, or that of several threads."""
        return np.where(thread >= 0, thread // self.threads, -2 - thread)

    def words(self, at, size):
        """Returns the numbers of the words that accesses of `size` bytes at these places touch, a row for each."""
        return (at + np.arange(0, size, self.grain)[:, None]) // self.grain

    def note_read(self, word, thread, block, epoch):
        by, several = self.reader[word], np.broadcast_to(-2 - block, word.shape)
        others = (by != NOBODY) & (by != thread) & (self.read[word] == epoch)
        if not self.shared:
            others &= self.block(by) == block
        now = np.where(others, several, thread)
        self.reader[word] = now
        twice = self.reader[word] != now  # read by another thread in the same instruction
        if twice.any():
            self.reader[word[twice]] = several[twice]
        self.read[word] = epoch

    def note_write(self, word, thread, epoch):
        self.writer[word], self.written[word] = thread, epoch


class SharedMemory(Space):
    """The shared memory of some blocks, one after another."""

    shared = True

    def __init__(self, size, blocks, grain, threads):
        self.size = -(-size // 16) * 16
        super().__init__(self.size * blocks, grain, threads)

    def place(self, address, blocks, size):
        """Returns where in `bytes` the blocks' addresses are, and which are outside."""
        return address + blocks * self.size, (address < 0) | (address + size > self.size)


class GlobalMemory(Space):
    """Copies of the process's memory from `begin` to `end` of each span, with guards between them."""

    def __init__(self, spans, grain, threads):
        self.spans, self.at, end = spans, [], GUARD
        for begin, stop in spans:
            self.at.append(end + begin % 256)  # so that an address is as aligned as it was
            end = -(-(self.at[-1] + stop - begin + GUARD) // 256) * 256
        super().__init__(end, grain, threads)
        self.valid = np.zeros(len(self.bytes) + 1, np.bool_)
        # Where a launch updates a tensor in place, a copy of a value may be read late by a thread that stores nothing.
        self.in_place = np.zeros(len(self.bytes), np.bool_)
        for (begin, stop), at in zip(spans, self.at, strict=True):
            self.bytes[at : at + stop - begin] = _process_memory(begin, stop)
            self.valid[at : at + stop - begin] = True

    def index(self, pointer):
        """Returns where in `bytes` the process's pointer is."""
        k = bisect_right(self.spans, pointer, key=itemgetter(0)) - 1
        return self.at[k] + pointer - self.spans[k][0]

    def place(self, address, blocks, size):
        at = address - BASE
        outside = (at < 0) | (at + size > len(self.bytes))
        held = np.where(outside, 0, at)
        return at, outside | ~(self.valid[held] & self.valid[held + size - 1])

    def write_back(self):
        for (begin, stop), at in zip(self.spans, self.at, strict=True):
            _process_memory(begin, stop)[:] = self.bytes[at : at + stop - begin]


def _process_memory(begin, stop):
    return (
        np.ctypeslib.as_array((ctypes.c_uint8 * (stop - begin)).from_address(begin))
        if stop > begin
        else np.empty(0, U1)
    )
