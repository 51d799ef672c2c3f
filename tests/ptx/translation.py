"""A block of PTX as a Python function of a machine, its registers and a mask of threads.

A register is a local variable for each way in which its bits are read: as unsigned (`u`), signed (`s`) or floating
(`f`). The machine (M) has what needs other threads or memory.
"""

from __future__ import annotations

from functools import partialmethod

import numpy as np

from ptx import arithmetic
from ptx.arithmetic import RAW
from ptx.parsing import CONTROL, DTYPE, Unsupported

NAME = {t: np.dtype(dtype).name for t, dtype in DTYPE.items()}
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
PACKED = {"bf16", "bf16x2", "f16x2"}  # in whole numbers
ORDERS = ("relaxed", "acquire", "release", "acq_rel", "volatile")
SCOPE = {name: value for name, value in vars(arithmetic).items() if callable(value)}
SCOPE |= {"np": np, "where": np.where, **{NAME[t]: dtype for t, dtype in DTYPE.items()}}


def _suffix(t):
    return t[0] if t[0] in "fs" else "u"


def _width(t):
    return 8 * np.dtype(DTYPE[t]).itemsize


def _raw(t):
    """The type's bits, as unsigned."""
    return t if t == "pred" else f"b{_width(t)}"


class Translator:
    """`function` returns block(M, R, m) of one block; with `masked` it acts on the threads of m."""

    def __init__(self, program, block, masked):
        self.program, self.block, self.masked = program, program.blocks[block], masked
        self.name = f"<{program.name} block {block}>"
        self.lines, self.forms, self.dirty, self.constants = [], {}, {}, {}

    def function(self):
        taken = "None"
        for i in self.block:
            if i.op == "bra" and i.pred:
                taken = self._predicate(i)
            elif i.op not in CONTROL:
                try:
                    assert i.op in ("add", "sub", "mul", "cvt", "setp") or not PACKED & {*i.mods}
                    getattr(self, "op_" + i.op)(i)
                except (AssertionError, AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
                    raise Unsupported(f"{self.program.name}: not implemented: {i.line};") from error
        for name in self.dirty:
            if name in self.program.lasting:
                kept = self._register(name, _raw(self.program.registers[name]))
                self.lines.append(f"R[{self.program.number[name]}] = {kept}")
        scope = {**SCOPE, **{name: _constant(*key) for key, name in self.constants.items()}}
        source = "\n    ".join(["def block(M, R, m):", *self.lines, f"return {taken}"])
        exec(compile(source, self.name, "exec"), scope)
        return scope["block"]

    # values

    def _get(self, o, t):
        """Returns an expression of the operand as an array, or a scalar, of the type."""
        if o[0] == "reg":
            return self._register(o[1], t)
        if o[0] == "special":
            return f"M.specials[{o[1]!r}]"
        return self._number(0 if o[0] == "sym" else o[1], t, bits=o[0] == "bits")  # shared memory begins at 0

    def _number(self, value, t, bits=False):
        return self.constants.setdefault((value, t, bits), f"K{len(self.constants)}")

    def _register(self, name, t):
        v, forms = f"v{self.program.number[name]}", self.forms.setdefault(name, set())
        if not forms:
            self.lines.append(f"{v}u = R[{self.program.number[name]}]")
            forms.add("u")
        for suffix in ("u", _suffix(t)):
            if suffix not in forms:
                kind = NAME[_raw(self.program.registers[name])] if suffix == "u" else NAME[t]
                self.lines.append(f"{v}{suffix} = {v}{next(iter(forms)) if suffix == 'u' else 'u'}.view({kind})")
                forms.add(suffix)
        return v + _suffix(t)

    def _put(self, i, expression, t, o=None):
        """Gives the instruction's result, or another operand, the value in the threads that execute it."""
        o = o or i.args[0]
        if o[0] == "sink":
            return
        name = o[1]
        masks = [self._predicate(i)] if i.pred else []
        masks += ["m"] if self.masked and name in self.program.lasting else []
        if masks:
            expression = f"where({' & '.join(masks)}, {expression}, {self._register(name, t)})"
        self.lines.append(f"v{self.program.number[name]}{_suffix(t)} = {expression}")
        self.forms[name], self.dirty[name] = {_suffix(t)}, True

    def _put_widened(self, i, expression, t, o):
        """The same for a value narrower than its register, or as wide."""
        width = _width(self.program.registers[o[1]])
        wide = f"{'s' if t[0] == 's' else 'u'}{width}"
        narrow = t if t[0] == "s" else _raw(t)
        if width == _width(t):
            self._put(i, expression, _raw(t), o)
        else:
            self._put(i, f"{expression}.view({NAME[narrow]}).astype({NAME[wide]})", wide, o)

    def _held(self, expression):
        """Returns a variable that has the expression's present value."""
        self.lines.append(f"t{len(self.lines)} = {expression}")
        return f"t{len(self.lines) - 1}"

    def _predicate(self, i):
        return ("~" if i.neg else "") + self._register(i.pred, "pred")

    def _active(self, i):
        """Returns the threads that execute the instruction, "None" where all do."""
        parts = ["m"] * self.masked + ([self._predicate(i)] if i.pred else [])
        return self._held(" & ".join(parts)) if parts else "None"

    # arithmetic

    def _binary(self, i, symbol, ufunc):
        t = i.type if i.type in ("f16", "f32", "f64", "pred") else f"u{_width(i.type)}"
        a, b = (self._get(o, t) for o in i.args[1:3])
        if i.args[1][0] != "reg":
            a = f"M.full({a})"
        self._put(i, f"{i.type}(np.{ufunc}, {a}, M.full({b}))" if i.type in PACKED else f"{a} {symbol} {b}", t)

    op_add = partialmethod(_binary, symbol="+", ufunc="add")
    op_sub = partialmethod(_binary, symbol="-", ufunc="subtract")
    op_and = partialmethod(_binary, symbol="&", ufunc=None)
    op_or = partialmethod(_binary, symbol="|", ufunc=None)
    op_xor = partialmethod(_binary, symbol="^", ufunc=None)

    def _product(self, i):
        """Returns (product, its type) of whole numbers."""
        if "wide" in i.mods:
            t = f"{i.type[0]}{2 * _width(i.type)}"
            a, b = (f"{self._get(o, i.type)}.astype({NAME[t]})" for o in i.args[1:3])
            return f"{a} * {b}", t
        t = i.type if "hi" in i.mods else _unsigned(i.type)
        a, b = (self._get(o, t) for o in i.args[1:3])
        return (f"high_product({a}, {b})" if "hi" in i.mods else f"{a} * {b}"), t

    def op_mul(self, i):
        if i.type[0] in "fb":
            self._binary(i, "*", "multiply")
        else:
            self._put(i, *self._product(i))

    def op_mad(self, i):
        product, t = self._product(i)
        self._put(i, f"{product} + {self._get(i.args[3], t)}", t)

    def op_fma(self, i):
        assert i.type in ("f32", "f64")
        a, b, c = (self._get(o, i.type) for o in i.args[1:4])
        if "contracted" in i.mods:
            subtracts, product = i.args[4]
            a, c = (f"(-{a})" if subtracts and product == 2 else a), (f"-{c}" if subtracts and product == 1 else c)
        self._put(i, f"fma{_width(i.type)}({a}, {b}, {c})", i.type)

    def op_div(self, i):
        a, b = (self._get(o, i.type) for o in i.args[1:3])
        if i.type[0] == "f":
            self._put(i, self._rounded(i, f"M.full({a}) / {b}", 2.0), i.type)
        else:
            self._put(i, f"divided(M.full({a}), M.full({b}), {i.op == 'rem'})", i.type)

    op_rem = op_div

    def _rounded(self, i, expression, ulps):
        return expression if "rn" in i.mods or not ulps else f"M.approximate({expression}, {ulps})"

    def _unary(self, i, form, ulps=0.0):
        self._put(i, self._rounded(i, form.format(self._get(i.args[1], i.type)), ulps), i.type)

    # With the errors, in units in the last place, that the PTX manual allows.
    op_sqrt = partialmethod(_unary, form="np.sqrt({})", ulps=1.0)
    op_rcp = partialmethod(_unary, form="(1 / {})", ulps=1.0)
    op_rsqrt = partialmethod(_unary, form="(1 / np.sqrt({0}.astype(float64))).astype({0}.dtype)", ulps=2.0)
    op_ex2 = partialmethod(_unary, form="np.exp2({0}.astype(float64)).astype({0}.dtype)", ulps=2.0)
    op_lg2 = partialmethod(_unary, form="np.log2({0}.astype(float64)).astype({0}.dtype)", ulps=2.0)
    op_abs = partialmethod(_unary, form="np.abs({})")
    op_neg = partialmethod(_unary, form="-{}")
    op_not = partialmethod(_unary, form="~{}")
    op_cvta = partialmethod(_unary, form="{}")

    def op_popc(self, i):
        self._put(i, f"np.bitwise_count({self._get(i.args[1], i.type)}).astype(uint32)", "u32")

    def op_min(self, i):
        a, b = (self._get(o, i.type) for o in i.args[1:3])
        ignores_nan = i.type[0] == "f" and "NaN" not in i.mods
        self._put(i, f"np.{f'f{i.op}' if ignores_nan else f'{i.op}imum'}({a}, {b})", i.type)

    op_max = op_min

    def op_shl(self, i):
        t = i.type if i.type[0] == "s" and i.op == "shr" else _unsigned(i.type)
        a, symbol, top = self._get(i.args[1], t), "<<" if i.op == "shl" else ">>", _width(t) - 1
        n = self._get(i.args[2], "u32")
        within = f"np.minimum({n}, {self._number(top, 'u32')}).astype({NAME[t]})"
        shifted = f"M.full({a}) {symbol} {within}"
        if t[0] != "s":
            shifted = f"where({n} > {self._number(top, 'u32')}, {self._number(0, t)}, {shifted})"
        self._put(i, shifted, t)

    op_shr = op_shl

    def op_bfe(self, i):
        position, length = (o[1] for o in i.args[2:4] if o[0] == "imm")
        left, right = (self._number(n, i.type) for n in (32 - position - length, 32 - length))
        assert _width(i.type) == 32
        self._put(i, f"({self._get(i.args[1], i.type)} << {left}) >> {right}", i.type)

    def op_bfi(self, i):
        position, length = (o[1] for o in i.args[3:5] if o[0] == "imm")
        a, b = (self._get(o, i.type) for o in i.args[1:3])
        mask = self._number(((1 << length) - 1) << position, i.type)
        self._put(i, f"(({a} << {self._number(position, i.type)}) & {mask}) | ({b} & ~{mask})", i.type)

    def op_shf(self, i):
        low, high = (f"{self._get(o, 'u32')}.astype(uint64)" for o in i.args[1:3])
        n, k32 = self._get(i.args[3], "u32"), self._number(32, "u64")
        n = f"({n} & {self._number(31, 'u32')})" if "wrap" in i.mods else f"np.minimum({n}, {self._number(32, 'u32')})"
        whole = f"(({high} << {k32}) | {low})"
        shifted = f"(({whole} << {n}.astype(uint64)) >> {k32})" if "l" in i.mods else f"({whole} >> {n}.astype(uint64))"
        self._put(i, f"{shifted}.astype(uint32)", "u32")

    def op_prmt(self, i):
        a, b, selectors = (self._get(o, "u32") for o in i.args[1:4])
        self._put(i, f"permuted({a}, {b}, {selectors})", "u32")

    def op_lop3(self, i):
        a, b, c = (f"M.full({self._get(o, 'u32')})" for o in i.args[1:4])
        self._put(i, f"looked_up({a}, {b}, {c}, {i.args[4][1]})", "u32")

    def op_setp(self, i):
        how, t = i.mods
        a, b = (f"from_bf16({self._get(o, t)})" if t == "bf16" else self._get(o, t) for o in i.args[1:3])
        nan = f"(np.isnan({a}) | np.isnan({b}))"
        if how in ("num", "nan"):
            found = nan if how == "nan" else f"~{nan}"
        elif how in COMPARISONS:
            found = f"{a} {COMPARISONS[how]} {b}"
            found = f"({found}) & ~{nan}" if how == "ne" and t in ("f16", "f32", "f64", "bf16") else found
        else:
            found = f"({a} {COMPARISONS[how.removesuffix('u')]} {b}) | {nan}"
        self._put(i, found, "pred")

    def op_selp(self, i):
        t = i.type if i.type[0] == "f" else _raw(i.type)
        a, b = (self._get(o, t) for o in i.args[1:3])
        self._put(i, f"where({self._get(i.args[3], 'pred')}, {a}, {b})", t)

    def op_mov(self, i):
        d, s, t = *i.args, _raw(i.type)
        if d[0] == "vec":
            part = f"b{_width(t) // len(d[1])}"
            whole = self._held(self._get(s, t))
            for k, o in enumerate(d[1]):
                shift = self._number(k * _width(part), t)
                self._put(i, f"({whole} >> {shift}).astype({NAME[part]})", part, o)
        elif s[0] == "vec":
            part = f"b{_width(t) // len(s[1])}"
            shifts = [self._number(k * _width(part), t) for k in range(len(s[1]))]
            parts = [f"({self._get(o, part)}.astype({NAME[t]}) << {n})" for o, n in zip(s[1], shifts, strict=True)]
            self._put(i, " | ".join(parts), t)
        else:
            self._put(i, self._get(s, t) if s[0] in ("reg", "special") else f"M.full({self._get(s, t)})", t)

    def op_cvt(self, i):
        to, source = i.mods[-2:]
        if to in ("bf16x2", "f16x2"):
            form = "to_bf16({})" if to == "bf16x2" else "{}.astype(float16).view(uint16)"
            high, low = (f"{form.format(self._get(o, 'f32'))}.astype(uint32)" for o in i.args[1:3])
            return self._put(i, f"({high} << {self._number(16, 'u32')}) | {low}", "u32")
        o = i.args[1]
        held = self.program.registers[o[1]] if o[0] == "reg" else f"b{DTYPE[source]().itemsize * 8}"
        a = self._get(o, source)
        if source[0] in "su" and _width(held) > _width(source):  # the lower bits of a register
            a = f"{self._get(o, _raw(held))}.astype({NAME[source]})"
        a = a if o[0] == "reg" else f"M.full({a})"
        if source == "bf16":
            a, source = f"from_bf16({a})", "f32"
        if to == "bf16":
            assert source == "f32" and "rn" in i.mods
            return self._put(i, f"to_bf16({a})", "b16")
        if to[0] in "su" and source[0] == "f":
            mode = next(m for m in i.mods if m in ("rzi", "rni", "rmi", "rpi"))
            return self._put(i, f"to_int({a}, {NAME[to]}, {mode!r})", to)
        assert to[0] != "f" or "rn" in i.mods or (source[0] == "f" and _width(to) >= _width(source))
        if to[0] in "su":
            return self._put_widened(i, f"{a}.astype({NAME[to]}).view({NAME[_raw(to)]})", to, i.args[0])
        return self._put(i, f"{a}.astype({NAME[to]})", to)

    # memory and other threads

    def _address(self, o):
        _, base, offset = o
        if base[0] == "sym":
            return f"M.full({self._number(offset, 'u32')})"
        t = _raw(self.program.registers[base[1]])
        return f"{self._get(base, t)} + {self._number(offset, t)}" if offset else self._get(base, t)

    def _space(self, i):
        return f"M.{next(m for m in i.mods if m in ('global', 'shared'))}_memory"

    def _order(self, i, default=None):
        return next((m for m in i.mods if m in ORDERS), default)

    def op_ld(self, i):
        outs = i.args[0][1] if i.args[0][0] == "vec" else [i.args[0]]
        if "param" in i.mods:
            at = self.program.params.index(i.args[1][1][1])
            return self._put_widened(i, f"M.parameter({at}, {NAME[_raw(i.type)]})", i.type, outs[0])
        where = f"{self._space(i)}, {self._address(i.args[1])}, {self._active(i)}"
        got = self._held(f"M.load({where}, {i.size}, {len(outs)}, {i.line!r}, {self._order(i)!r})")
        for k, o in enumerate(outs):
            self._put_widened(i, f"{got}[{k}]", i.type, o)

    def op_st(self, i):
        values = []
        for o in i.args[1][1] if i.args[1][0] == "vec" else [i.args[1]]:
            held = self.program.registers[o[1]] if o[0] == "reg" else i.type
            narrow = "" if _width(held) == 8 * i.size else f".astype(uint{8 * i.size})"
            values.append(self._get(o, _raw(held)) + narrow)
        where = f"{self._space(i)}, {self._address(i.args[0])}, {self._active(i)}"
        values = "".join(f"{value}, " for value in values)
        self.lines.append(f"M.store({where}, {i.size}, ({values}), {i.line!r}, {self._order(i)!r})")

    def op_cp(self, i):
        """cp.async: to shared memory, from global memory, filled up with zeros; and groups of them."""
        active = self._active(i)
        if "commit_group" in i.mods:
            self.lines.append(f"M.commit_copies({active})")
        elif "wait_all" in i.mods or "wait_group" in i.mods:
            groups = i.args[0][1] if i.args else -1
            self.lines.append(f"M.wait_for_copies({active}, {groups})")
        else:
            assert i.mods[:1] == ["async"] and {"shared", "global"} <= {*i.mods}
            to, source = (self._address(o) for o in i.args[:2])
            size = i.args[2][1]
            taken = self._get(i.args[3], "u32") if i.args[3:] else self._number(size, "u32")
            self.lines.append(f"M.copy({to}, {source}, {active}, {size}, M.full({taken}), {i.line!r})")

    def op_ldmatrix(self, i):
        outs = i.args[0][1] if i.args[0][0] == "vec" else [i.args[0]]
        where = f"{self._address(i.args[1])}, {self._active(i)}"
        got = self._held(f"M.matrices({where}, {len(outs)}, {'trans' in i.mods}, None, {i.line!r})")
        for k, o in enumerate(outs):
            self._put(i, f"{got}[{k}]", "b32", o)

    def op_stmatrix(self, i):
        parts = i.args[1][1] if i.args[1][0] == "vec" else [i.args[1]]
        values = "".join(f"{self._get(o, 'b32')}, " for o in parts)
        where = f"{self._address(i.args[0])}, {self._active(i)}"
        self.lines.append(f"M.matrices({where}, {len(parts)}, {'trans' in i.mods}, ({values}), {i.line!r})")

    def op_atom(self, i):
        address, *operands = i.args if i.op == "red" else i.args[1:]
        what = i.mods[-2]
        assert what in ("add", "and", "exch", "cas") and "global" in i.mods and i.size == 4 and i.type[0] in "bus"
        given = "".join(f"M.full({self._get(o, 'b32')}), " for o in operands)
        where = f"{self._address(address)}, {self._active(i)}"
        got = self._held(f"M.atomic({where}, {what!r}, {self._order(i, 'relaxed')!r}, ({given}), {i.line!r})")
        if i.op == "atom":
            self._put(i, got, "b32")

    op_red = op_atom

    def op_shfl(self, i):
        a, b = (self._get(o, "b32") for o in i.args[1:3])
        how = next(m for m in i.mods if m in ("bfly", "idx", "up", "down"))
        self._put(i, f"M.shuffled(M.full({a}), {b}, {how!r}, {self._active(i)}, {i.line!r})", "b32")

    def op_redux(self, i):
        how = {"add": "add", "min": "minimum", "max": "maximum"}[i.mods[1]]
        a = f"M.full({self._get(i.args[1], i.type)})"
        self._put(i, f"M.reduced({a}, np.{how}, {self._active(i)}, {i.line!r})", i.type)

    def op_warpsync(self, i):
        self.lines.append(f"M.pass_warp_barrier({self._active(i)}, {i.line!r})")

    def op_createpolicy(self, i):  # a cache policy: only hints take it
        self._put(i, f"M.full({self._number(0, 'u64')})", "b64")

    def op_fence(self, i):
        self.lines.append(f"M.fence({self._active(i)})")

    op_membar = op_fence


def _unsigned(t):
    return t if t == "pred" else f"u{_width(t)}"


def _constant(value, t, bits):
    """The number as a scalar of the type."""
    dtype = np.dtype(DTYPE[t])
    if dtype.kind in "fb" and not bits:
        return dtype.type(value)
    return RAW[dtype.itemsize](value % (1 << 8 * dtype.itemsize)).view(dtype)
