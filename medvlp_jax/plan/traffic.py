"""Bytes that a compiled program moves, instruction by instruction, from its text: loops by their length, and by whom.

The compiler's own total counts the body of a loop once. Here an instruction reads its operands and writes its result;
arrays in on-chip memory (`S(1)` in a layout) cost nothing, of an array that is sliced only the slice counts.
"""

import dataclasses
import functools
import math
import re
from collections import Counter

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "conditional", "call", "iota"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """name, opcode, bytes of its result; operands: names; called: computations; attributes: the rest of its line."""

    name: str
    opcode: str
    size: int
    operands: tuple[str, ...]
    called: tuple[str, ...]
    attributes: str


class Program:
    """The computations of a compiled program, parsed from `Compiled.as_text()`."""

    def __init__(self, hlo: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, inside = "", {}
        for line in hlo.splitlines():
            if line.startswith(("%", "ENTRY ")):
                name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
                inside = self.computations[name] = {}
                self.entry = name if line.startswith("ENTRY ") else self.entry
            elif match := _INSTRUCTION.match(line):
                name, shape, opcode, rest = match.groups()
                operands, _, attributes = rest.partition(")")
                called = re.findall(r"(?:calls|body|condition|to_apply)=%([\w.\-]+)", attributes)
                if branches := re.search(r"branch_computations=\{([^}]*)\}", attributes):
                    called = re.findall(r"%([\w.\-]+)", branches[1])
                names = tuple(re.findall(r"%([\w.\-]+)", operands))
                # A constant keeps its value there.
                kept = operands if opcode == "constant" else attributes
                inside[name] = Instruction(name, opcode, _size(shape), names, tuple(called), kept)

    def moved(self, computation: str, instruction: Instruction) -> int:
        """Bytes that one execution reads and writes; 0 for loops and branches, whose bodies are counted."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        inside = self.computations[computation]
        sizes = [inside[name].size if name in inside else 0 for name in instruction.operands]
        if opcode == "dynamic-slice":
            return 2 * instruction.size
        if opcode == "dynamic-update-slice":
            return 2 * sizes[1]
        if opcode != "fusion":
            return sum(sizes) + instruction.size
        read, written = self._fused(instruction.called[0])
        sizes = [min(size, read.get(number, size)) for number, size in enumerate(sizes)]
        return sum(sizes) + (instruction.size if written is None else min(written, instruction.size))

    @functools.cache  # noqa: B019 (a program lives as long as its caller)
    def _fused(self, name: str) -> tuple[dict[int, int], int | None]:
        """Of a fusion: parameters that are only sliced -> bytes read; bytes written when it updates in place."""
        inside = self.computations[name]
        numbers = {i.name: number for number, i in enumerate(i for i in inside.values() if i.opcode == "parameter")}
        users: dict[str, list[tuple[int, Instruction]]] = {}
        for instruction in inside.values():
            for place, operand in enumerate(instruction.operands):
                users.setdefault(operand, []).append((place, instruction))
        read: dict[int, int] = {}
        for parameter, number in numbers.items():
            sizes = []
            for place, user in users.get(parameter, []):
                if user.opcode == "dynamic-slice" and place == 0:
                    sizes.append(user.size)
                elif user.opcode == "dynamic-update-slice" and place == 0:
                    sizes.append(0)
                else:
                    break
            else:
                read[number] = sum(sizes)
        last = list(inside.values())[-1] if inside else None
        in_place = last is not None and last.opcode == "dynamic-update-slice" and last.operands[1] in inside
        return read, inside[last.operands[1]].size if in_place else None

    def trips(self, loop: Instruction) -> int:
        """Length of a loop that counts to the one integer constant of its condition; 1 where that is not to be seen."""
        condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        found = list(self.computations.get(condition[1] if condition else "", {}).values())
        numbers = [int(i.attributes) for i in found if i.opcode == "constant" and re.fullmatch(r"\d+", i.attributes)]
        return max(numbers) if len(numbers) == 1 else 1

    def executed(self, loops: bool = True, computation: str = "", times: int = 1) -> list[tuple[int, int, Instruction]]:
        """(bytes of one execution, executions, instruction) for all that runs; of the branches of a condition the one
        that moves most. Without `loops` every body counts once."""
        computation = computation or self.entry
        found = []
        for instruction in self.computations.get(computation, {}).values():
            inner = []
            if instruction.opcode == "while":
                body = re.search(r"body=%([\w.\-]+)", instruction.attributes)[1]
                inner = self.executed(loops, body, times * (self.trips(instruction) if loops else 1))
            elif instruction.opcode == "conditional":
                branches = [self.executed(loops, name, times) for name in instruction.called]
                inner = max(branches, key=_total, default=[])
            elif instruction.opcode == "call":
                inner = self.executed(loops, instruction.called[0], times)
            found += inner
            if moved := self.moved(computation, instruction):
                found.append((moved, times, instruction))
        return found


def loop_factor(program: Program) -> float:
    """How many times more a program moves than is counted when the body of each loop counts once."""
    once = _total(program.executed(loops=False))
    return _total(program.executed()) / once if once else 1.0


def by_source(program: Program, count: int = 12) -> list[tuple[int, int, str]]:
    """(bytes, instructions, what they compute) of the operations of the model that move most, by the names of its
    modules without numbers: `transpose(jvp(Imitate))/trunk/stage3/conv1`."""
    moved: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for size, times, instruction in program.executed():
        name = re.search(r'op_name="([^"]*)"', instruction.attributes)
        words = re.sub(r"jit\(\w+\)/|_block\d+|\d+(?=/)", "", name[1] if name else instruction.opcode)
        key = "/".join(words.split("/")[:5])
        moved[key] += size * times
        number[key] += times
    return [(size, number[key], key) for key, size in moved.most_common(count)]


def _total(executed: list[tuple[int, int, Instruction]]) -> int:
    return sum(size * times for size, times, _ in executed)


def _size(shape: str) -> int:
    """Bytes of the arrays of a shape that are in the chip's main memory."""
    return sum(
        BYTES.get(kind, 4) * math.prod(int(n) for n in sides.split(",") if n)
        for kind, sides, layout in _ARRAY.findall(shape)
        if not re.search(r"S\([1-9]\)", layout)
    )
