"""A kernel in the compiler's own words, Triton's IR: what its addresses are made of, and in how many bits."""

import re

PRODUCTS = ("arith.muli", "arith.shli")
# A product that is divided is an index again, and no offset; a comparison is neither, and nor is what memory holds.
ENDS = ("arith.divsi", "arith.remsi", "arith.divui", "arith.remui", "arith.cmpi", "tt.load")


class Program:
    """A kernel's TTIR as definitions: value -> (operation, operands, the rest of the line).

    Of loops and branches it knows three more operations: "from" is a loop's variable, "carried" a value that a loop
    hands on to its next pass, "to" a result.
    """

    def __init__(self, text):
        # A wait at a barrier yields nothing, and computes no offset.
        text = re.sub(r"scf\.while : \(\) -> \(\) \{.*?\} do \{.*?\n *\}[^\n]*", "", text, flags=re.DOTALL)
        assert "scf.while" not in text, "not understood here"
        self.values = {}
        self.scopes = [{}]  # names, which sibling regions use again, by region: name -> key in values
        self._loop_results = []
        yields = [[]]  # of each open region, what the values it yields become
        for line in text.splitlines():
            line = re.sub(r" loc\(.*\)$", "", line.strip())
            if line.startswith("}"):
                self.scopes.pop()
                closed = yields.pop()
            carried = closed if line.startswith("} else") else self._define(line)
            if line.startswith("scf.yield %"):
                for value, keys in zip(self._operands(line.split(" : ")[0]), yields[-1], strict=True):
                    for key in keys:
                        self.values[key][1].append(value)
            if line.endswith("{"):
                self.scopes.append({})
                yields.append(carried)
            self._define_arguments(line)

    def _operands(self, text):
        return [next(s[name] for s in reversed(self.scopes) if name in s) for name in re.findall(r"%[\w#-]+", text)]

    def _enter(self, name, operation, operands, kind):
        key = self.scopes[-1][name] = f"{name} ({len(self.values)})"
        self.values[key] = (operation, operands, kind)
        return key

    def _define_arguments(self, line):
        """Enters what a region begins with: a function's or a reduction's arguments, a loop's variable."""
        if line.startswith(("tt.func", "^")):
            for name, kind in re.findall(r"(%\w+): (!tt\.ptr|[if]\d+)", line):
                self._enter(name, "argument" if line.startswith("tt.func") else "element", [], kind)
        loop = re.search(r"scf\.for (%\w+) = (%[\w#]+) .*?(i\d+) \{$", line)
        if loop:
            self._enter(loop[1], "from", self._operands(loop[2]), loop[3])
            handed_on = re.findall(r"(%\w+) = (%[\w#]+)", line.partition("iter_args")[2])
            for (name, initial), becomes in zip(handed_on, self._loop_results, strict=True):
                _, operands, kind = self.values[becomes[0]]
                operands += self._operands(initial)
                becomes.append(self._enter(name, "carried", self._operands(initial), kind))

    def _define(self, line):
        """Enters a line's results; of a loop or branch returns, for each value that it yields, what that becomes."""
        self._loop_results = []
        match = re.match(r"(%[\w-]+)(?::(\d+))? = \"?([\w.]+)\"?(.*)", line)
        if match is None:
            return []
        name, count, operation, rest = match.groups()
        if operation in ("scf.for", "scf.if"):
            types = re.findall(r"[^\s,()]+", re.search(r"-> \((.*?)\)", rest)[1])
            names = [f"{name}#{i}" for i in range(len(types))] if len(types) > 1 else [name]
            self._loop_results = [[self._enter(n, "to", [], kind)] for n, kind in zip(names, types, strict=True)]
        else:
            operands = self._operands(rest.split(" : ")[0].split("({")[0])
            for result in [f"{name}#{i}" for i in range(int(count))] if count else [name]:
                self._enter(result, operation, operands, rest)
        return self._loop_results

    def bits(self, name):
        """The width of an integer value, by the type that its line ends with."""
        return int(re.search(r"i(\d+)>?$", self.values[name][2])[1])

    def constant(self, name):
        """The number that a value is, splat or not; None if it is not known."""
        operation, operands, rest = self.values[name]
        if operation == "arith.constant":
            number = re.match(r" (?:dense<)?(-?\d+)>?(?: |$)", rest)
            return int(number[1]) if number else None
        return self.constant(operands[0]) if operation in ("tt.splat", "arith.extsi", "tt.broadcast") else None

    def behind(self, name, ends=()):
        """The value and all that it is made of, as far as the operations that end the search."""
        found, waiting = {}, [name]
        while waiting:
            here = waiting.pop()
            if here not in found:
                found[here] = self.values[here]
                waiting += [] if found[here][0] in ends else found[here][1]
        return found

    def kinds(self, name):
        """Returns what a number is made of: tile lanes, sizes (arguments), positions (programs and loop variables)."""
        kind = {"tt.make_range": "lane", "argument": "size", "from": "position"}
        kind |= {"tt.get_program_id": "position", "tt.get_num_programs": "position", "tt.load": "data"}
        return {kind[operation] for operation, *_ in self.behind(name).values() if operation in kind}

    def lengths(self):
        """Of the program's tiles."""
        ranges = [
            re.search(r"end = (\d+).*start = (\d+)", r) for o, _, r in self.values.values() if o == "tt.make_range"
        ]
        return {int(match[1]) - int(match[2]) for match in ranges}

    def is_index(self, product):
        """Returns True if a 32-bit product counts something that an argument counts, or stays inside a tile."""
        operation, (a, b), _ = self.values[product]
        if operation == "arith.shli":
            return False  # Triton writes none for an index
        if self.constant(a) is not None:
            a, b = b, a
        factor = self.constant(b)
        if factor is None:
            # The number of a part times what a part has of the whole.
            if any(self.values[n][0] == "arith.divsi" and "position" in self.kinds(m) for n, m in ((a, b), (b, a))):
                return True
            return {frozenset(self.kinds(a)), frozenset(self.kinds(b))} == {frozenset({"lane"}), frozenset({"size"})}
        if "position" in self.kinds(a):
            return factor in self.lengths()  # a tile's number times its length: the number of its first element
        quotients = (operands for operation, operands, _ in self.behind(a).values() if operation == "arith.divsi")
        rounded_down = any(self.constant(divisor) == factor for _, divisor in quotients)
        return self.kinds(a) <= {"lane"} or rounded_down

    def offsets(self):
        return [operands[1] for operation, operands, _ in self.values.values() if operation == "tt.addptr"]

    def narrow(self):
        """The 32-bit values that should be 64-bit: products and running sums that reach an address."""
        found = set()
        for offset in self.offsets():
            for name, (operation, _, _) in self.behind(offset, ENDS).items():
                product = operation in PRODUCTS and not self.is_index(name)
                if operation == "arith.trunci" or ((product or operation == "carried") and self.bits(name) == 32):
                    found.add(name)
        return found

    def wide_products(self):
        """The 64-bit products that reach an address."""
        behind = {k: v for offset in self.offsets() for k, v in self.behind(offset, ENDS).items()}
        return {name for name, (operation, *_) in behind.items() if operation in PRODUCTS and self.bits(name) == 64}

    def rounded_up(self):
        """The 32-bit sums of arguments, or of one and a constant, that are divided: of the largest, beyond 2^31."""
        found = set()
        for dividend in [operands[0] for operation, operands, _ in self.values.values() if operation == "arith.divsi"]:
            for name, (operation, operands, _) in self.behind(dividend, ENDS).items():
                added = operation == "arith.addi" and self.kinds(name) == {"size"} and self.bits(name) == 32
                if added and self.values[operands[0]][0] == "arith.divsi":
                    continue  # a quotient, and so a number of blocks: one more of them does not wrap
                if added and (self.constant(operands[1]) or 1) > 0:
                    found.add(name)
        return found

    def narrow_compared_with_wide(self):
        """The 32-bit products that are compared with a 64-bit argument, and so may be beyond what they can hold."""
        found = set()
        for operation, operands, rest in self.values.values():
            if operation == "arith.cmpi" and "i64" in rest:
                for name, (inner, *_) in {k: v for o in operands for k, v in self.behind(o, ENDS).items()}.items():
                    if inner in PRODUCTS and self.bits(name) == 32:
                        found.add(name)
        return found
