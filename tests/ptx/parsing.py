"""PTX as instructions, in blocks that end at branches and barriers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from itertools import count

import numpy as np

DTYPE = {
    "pred": np.bool_,
    **dict.fromkeys(("u8", "b8"), np.uint8),
    **dict.fromkeys(("u16", "b16", "bf16"), np.uint16),
    **dict.fromkeys(("u32", "b32", "bf16x2", "f16x2"), np.uint32),
    **dict.fromkeys(("u64", "b64"), np.uint64),
    **{f"s{n}": getattr(np, f"int{n}") for n in (8, 16, 32, 64)},
    **{f"f{n}": getattr(np, f"float{n}") for n in (16, 32, 64)},
}
# Modifiers that are implemented, or that change no result. Others (.sat, .rz, .cc, .relu, ...) are refused.
MODIFIERS = {*DTYPE}.union(
    re.findall(
        r"\w+",
        "rn rzi rni rmi rpi approx full ftz NaN lo hi wide l r wrap clamp lt le gt ge eq ne ls hs num nan ltu leu gtu "
        "geu equ neu param global shared v2 v4 v8 acquire release acq_rel relaxed volatile weak gpu gl cta sys sc add "
        "exch cas min max and or xor sync aligned m8n8 x1 x2 x4 trans bfly idx up down uni to nc ca cg cs cv wb wt "
        "fractional async commit_group wait_group wait_all",
    )
)
SPECIALS = {f"%{name}.{axis}" for name in ("ctaid", "nctaid", "tid") for axis in "xyz"}
SPECIALS |= {"%ntid.x", "%laneid", "%warpid"}
CONTROL = ("bra", "ret", "exit", "bar")  # a block ends there
WITHOUT_RESULT = (*CONTROL, "st", "stmatrix", "red", "cp", "fence", "membar", "warpsync")


class Unsupported(Exception):
    """An instruction that the emulator does not implement."""


class Instruction:
    """`@!%p op.mods args`; `line` is its text."""

    __slots__ = ("args", "line", "mods", "neg", "op", "pred")

    def __init__(self, pred, neg, opcode, args, line):
        self.pred, self.neg, self.args, self.line = pred, neg, args, line
        self.op, *self.mods = opcode.replace("::", "_").replace("bar.warp.sync", "warpsync").split(".")

    @property
    def type(self):
        return self.mods[-1]

    @property
    def size(self):
        """Bytes of an element of the type."""
        return int(re.sub(r"\D", "", self.type)) // 8

    @property
    def reads(self):
        """Names of the registers that it reads."""
        sources = self.args if self.op in WITHOUT_RESULT else self.args[1:]
        return [r for o in sources for r in _registers(o)] + ([self.pred] if self.pred else [])

    @property
    def writes(self):
        """Names of the registers that it writes."""
        return [] if self.op in WITHOUT_RESULT or not self.args else [*_registers(self.args[0])]


def _registers(o):
    if o[0] == "reg":
        yield o[1]
    elif o[0] == "vec":
        for part in o[1]:
            yield from _registers(part)
    elif o[0] == "mem":
        yield from _registers(o[1])


def _split(text):
    """Splits at commas outside brackets."""
    return [part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,{[])+", text)]


def _inlined(body, functions, numbers):
    """Returns the PTX with the body of a function in place of each call, and registers for its parameters."""
    done = ""
    while call := re.search(r"call\.uni ([\w$]+), \([^)]*\);", body):
        n = next(numbers)
        before, body = body[: call.start()], body[call.end() :]
        before = re.sub(r"\.param \.b(\d+)\s+param(\d+);", rf".reg .b\1 %c{n}_param\2;", before)
        before = re.sub(r"st\.param\.b(\d+)\s+\[param(\d+)\],", rf"cvt.u\1.u\1 %c{n}_param\2,", before)
        called = re.sub(r"%([a-z]+)(?=[\d<])", rf"%c{n}_\1", functions[call[1]])
        called = re.sub(r"\$L__\w+", rf"\g<0>_{n}", called)
        called = re.sub(r"ld\.param\.b(\d+)\s+(%\w+), \[\S+_param_(\d+)\];", rf"cvt.u\1.u\1 \2, %c{n}_param\3;", called)
        called = re.sub(r"\bret;", f"bra.uni $L__after_{n};", called)
        done += f"{before}\n{_inlined(called, functions, numbers)}\n$L__after_{n}:\n"
    return done + body


class Program:
    """One kernel. Products are fused into sums as ptxas may do it, as `contract` says:

    "none" is no product, "single" each one whose only use is a sum, and "all" every sum with a product in its block.
    """

    def __init__(self, ptx, contract):
        ptx = re.sub("//.*", "", ptx)
        _, body = ptx.split(".visible .entry", 1)
        self.name = re.match(r"\s*(\w+)\(", body)[1]
        params, body = body.split("\n{", 1)
        functions = dict(re.findall(r"\.func ([\w$]+)\s*\([^)]*\)\s*\{\n(.*?)\n\}", ptx, re.DOTALL))
        body = _inlined(body[: body.index("\n}")], functions, count())
        self.params = [m[1] for m in re.finditer(r"\.param [^\n]*?(\w+_param_\d+)", params)]
        self.threads = int(re.search(r"\.reqntid (\d+)", params)[1])
        self.registers, labels, flat = {}, {}, []
        for raw in body.splitlines():
            line = raw.strip()
            while line:
                if line.startswith(".reg"):
                    declared, _, line = (part.strip() for part in line.partition(";"))
                    self._declare(*declared.split(maxsplit=2)[1:])
                elif line.startswith("."):
                    break
                elif label := re.match(r"(\$\w+):\s*", line):
                    labels[label[1]] = len(flat)
                    line = line[label.end() :]
                elif line[0] in "{}":
                    line = line[1:].strip()
                else:
                    statement, _, line = (part.strip() for part in line.partition(";"))
                    flat.append(self._instruction(statement))
        for i in flat:
            self._check(i)
        targets = {labels[i.args[0][1]] for i in flat if i.op == "bra"}
        starts = sorted({0} | targets | {n + 1 for n, i in enumerate(flat) if i.op in CONTROL})
        starts = [start for start in starts if start < len(flat)]
        self.blocks = [flat[a:b] for a, b in zip(starts, [*starts[1:], len(flat)], strict=True)]
        self.target = {label: starts.index(at) for label, at in labels.items() if at in starts}
        sizes = [i.size for i in flat if i.op in ("ld", "st") and "param" not in i.mods]
        # Bytes in which accesses are told apart.
        self.grain = min([2 if any(i.op.endswith("matrix") for i in flat) else 4, *sizes])
        # Whether programs may wait for each other.
        self.atomic = any(i.op in ("atom", "red") or {"acquire", "relaxed", "volatile"} & {*i.mods} for i in flat)
        if contract != "none":
            self._contract(contract == "all")
        self.number = {name: n for n, name in enumerate(self.registers)}
        self.lasting = self._lasting()
        self.functions = {}  # of blocks, by number and whether they are masked

    def _declare(self, kind, names):
        for name in names.split(","):
            stem, count = re.fullmatch(r"\s*([%\w]+)(?:<(\d+)>)?\s*", name).groups()
            numbered = [f"{stem}{k}" for k in range(int(count))] if count else [stem]
            self.registers.update(dict.fromkeys(numbered, kind.removeprefix(".")))

    def _instruction(self, statement):
        found = re.match(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", statement)
        try:
            neg, pred, opcode, rest = found.groups()
            args = [self._operand(part) for part in _split(rest)]
            return Instruction(pred, bool(neg), opcode, args, statement)
        except (AttributeError, TypeError) as error:
            raise Unsupported(f"{self.name}: cannot read: {statement};") from error

    def _operand(self, text):
        """Returns a kind and what belongs to it: ("reg", name), ("imm", n), ("vec", operands), ("mem", base, n)."""
        if text.startswith("{"):
            return "vec", [self._operand(part) for part in _split(text[1:-1])]
        if text.startswith("["):
            base, offset = re.fullmatch(r"([%\w$.]+?)(?:\+(-?\w+))?", text[1:-1].replace(" ", "")).groups()
            return "mem", self._operand(base), int(offset or "0", 0)
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return "imm", int(text.rstrip("U"), 0)
        if text.startswith(("0f", "0d")):
            return "bits", int(text[2:], 16)
        if text == "_":
            return ("sink",)
        if re.match(r"%(tid|ctaid|ntid|nctaid|laneid|warpid|cluster)", text):
            return "special", text
        return ("reg" if text.startswith("%") or text in self.registers else "sym"), text

    def _check(self, i):
        """Refuses what the translation does not know, before anything runs."""
        unknown = [f".{m}" for m in i.mods if m not in MODIFIERS and not m.startswith(("L1_", "L2_"))]  # cache hints
        unknown += [r for r in i.reads + i.writes if r not in self.registers]
        unknown += [o[1] for o in i.args if o[0] == "special" and o[1] not in SPECIALS]
        if i.op == "bar" and (i.mods != ["sync"] or i.args != [("imm", 0)]):
            unknown.append("barrier but `bar.sync 0` of all threads")
        if unknown:
            raise Unsupported(f"{self.name}: there is no {', '.join(unknown)}: {i.line};")

    def _contract(self, everywhere):
        """Makes fma of mul.f32 and add.f32 or sub.f32, neither with a rounding of its own."""
        uses = Counter(r for block in self.blocks for i in block for r in i.reads)
        definitions = Counter(r for block in self.blocks for i in block for r in i.writes)
        for block in self.blocks:
            products, dropped = {}, []
            for i in block:
                if i.op in ("add", "sub") and i.mods in (["f32"], ["f64"]) and not i.pred:
                    for which in (1, 2):
                        product = products.get(i.args[which][1]) if i.args[which][0] == "reg" else None
                        if product is not None and product.mods == i.mods:
                            if uses[i.args[which][1]] == 1:
                                dropped.append(product)
                            # Of a difference, which side was the product.
                            negate = (i.op == "sub", which)
                            i.args = [i.args[0], product.args[1], product.args[2], i.args[3 - which], negate]
                            i.op, i.mods = "fma", ["rn", "contracted", *i.mods]
                            break
                written = {*i.writes}
                for r in [r for r, product in products.items() if r in written or written & {*product.reads}]:
                    del products[r]
                if i.op == "mul" and i.mods in (["f32"], ["f64"]) and not i.pred:
                    r = i.args[0][1]
                    if (uses[r] == 1 or everywhere) and definitions[r] == 1:
                        products[r] = i
            block[:] = [i for i in block if i not in dropped]

    def _lasting(self):
        """Returns the registers that outlive their block."""
        found, written = set(), defaultdict(set)
        for n, block in enumerate(self.blocks):
            done = set()
            for i in block:
                found |= {r for r in i.reads if r not in done}
                found |= {r for r in i.writes if i.pred and r not in done}
                done |= {*i.writes}
                for r in i.writes:
                    written[r].add(n)
        return found | {r for r, blocks in written.items() if len(blocks) > 1}


@cache
def program(ptx, contract="single"):
    return Program(ptx, contract)
