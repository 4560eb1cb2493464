"""Damage an artifact's files in hundreds of seeded ways, and see how every command ends on them.

    damaged(folder, "Data/model.mlmodel", model, range(200), commands=("inspect", "lint"))

Each case is opened in a process that may die: a native runtime can end it, and then the next process goes on behind
that case. What must never come is an error that is not one of ours (a traceback for the user), a case that takes longer
than ``SECONDS``, or more memory than ``MOST_BYTES`` above what the sound artifact takes.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ending", "damaged", "mutated", "mutated_message"]

SECONDS = 240
MOST_BYTES = 1_000_000_000
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
# Most of a file is weights; damage there changes values, and only its first bytes and last ones say what they are.
ENDS = 8192


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended on a case: ``sound``, ``refused``, ``crash`` (of the process), or ``traceback``."""

    seed: int
    command: str
    kind: str
    told: str


def mutated(data: bytes, seed: int) -> bytes:
    """The file with one kind of damage; the same for the same seed."""
    chance = random.Random(seed)
    changed = bytearray(data)
    way = chance.choice((_cut, _flip, _flip, _overwrite, _number, _number, _remove, _insert, _random, _repeat))
    return bytes(way(changed, chance))


def mutated_message(data: bytes, kind: type[Any], seed: int) -> bytes:
    """A protobuf that can be read, with some of its fields dropped, repeated or set to other values."""
    chance = random.Random(seed)
    message = kind.FromString(data)
    held = list(_messages(message))
    for _ in range(chance.choice((1, 1, 2, 5))):
        _mutate_field(chance.choice(held), chance)
    return bytes(message.SerializeToString())


def damaged(
    folder: Path,
    name: str,
    model: Path | str,
    seeds: Iterable[int],
    *,
    commands: Sequence[str],
    scratch: Path,
    in_fields: bool = False,
) -> list[Ending]:
    """Every seed's damage to the file ``name`` of an artifact, opened by every command.

    ``in_fields`` damages the fields of a protobuf, which stays one that can be read.
    """
    left, endings = list(seeds), []
    while left:
        asked = {"folder": str(folder), "name": name, "model": str(model), "seeds": left, "commands": list(commands)}
        asked["in_fields"] = in_fields
        # The package first: this folder has a folder of its name.
        begin = (
            f"import sys, qwen3_export; sys.path.append({str(Path(__file__).parent)!r}); import damage; damage.work()"
        )
        command = [sys.executable, "-c", begin, json.dumps(asked), str(scratch)]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
        ) as process:
            out, err = process.communicate()
        lines = [json.loads(line[1:]) for line in out.splitlines() if line.startswith("\x01")]
        endings += [Ending(**line) for line in lines if "kind" in line]
        begun = [line for line in lines if "kind" not in line]
        if process.returncode == 0:
            return endings
        assert begun, f"the process died before it began: {err[-2000:]}"
        last = begun[-1]
        kind = "hang" if process.returncode == -signal.SIGALRM else "crash"
        told = f"exit {process.returncode}: {err[-300:]}"
        endings.append(Ending(seed=last["seed"], command=last["command"], kind=kind, told=told))
        left = left[left.index(last["seed"]) + 1 :]
    return endings


def _cut(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.choice((0, 1, 4, 64, len(data) - 1, chance.randrange(len(data))))]


def _flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 1, 3, 30))):
        data[_place(data, chance)] ^= 1 << chance.randrange(8)
    return data


def _overwrite(data: bytearray, chance: random.Random) -> bytearray:
    at, count = _place(data, chance), chance.choice((1, 8, 64, 1024))
    data[at : at + count] = chance.randbytes(len(data[at : at + count]))
    return data


def _number(data: bytearray, chance: random.Random) -> bytearray:
    size, at = chance.choice((1, 2, 4, 8)), _place(data, chance)
    value = chance.choice(NUMBERS) & ((1 << 8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, "little")[: len(data) - at]
    return data


def _remove(data: bytearray, chance: random.Random) -> bytearray:
    at = _place(data, chance)
    del data[at : at + chance.choice((1, 4, 64, 4096))]
    return data


def _insert(data: bytearray, chance: random.Random) -> bytearray:
    at = _place(data, chance)
    data[at:at] = chance.randbytes(chance.choice((1, 4, 64, 4096)))
    return data


def _random(data: bytearray, chance: random.Random) -> bytearray:
    return bytearray(chance.randbytes(chance.choice((16, 1000, min(len(data), 100_000)))))


def _repeat(data: bytearray, chance: random.Random) -> bytearray:
    """A part of the file in another part's place."""
    at, source, count = _place(data, chance), _place(data, chance), chance.choice((8, 64, 512))
    part = data[source : source + count]
    data[at : at + len(part)] = part
    return data


def _place(data: bytearray, chance: random.Random) -> int:
    if len(data) <= 2 * ENDS or chance.random() < 0.3:
        return chance.randrange(len(data))
    near = chance.randrange(ENDS)
    return near if chance.random() < 0.5 else len(data) - 1 - near


def _messages(message: Any) -> Iterator[Any]:
    """A message and all that it holds; of maps with messages, their values."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = list(value.values())
            parts = values if values and hasattr(values[0], "ListFields") else []
        else:
            parts = value if hasattr(value, "add") else [value]
        for part in parts:
            yield from _messages(part)


def _mutate_field(message: Any, chance: random.Random) -> None:
    fields = message.ListFields()
    if not fields:
        return
    field, value = chance.choice(fields)
    if field.message_type is not None or chance.random() < 0.2:
        message.ClearField(field.name)
        return
    many = hasattr(value, "append")
    one = chance.choice(value) if many else value
    new: Any
    if isinstance(one, str):
        new = chance.choice(("", "x", one + "_", one[: len(one) // 2], "../" + one, "const", "matmul"))
    elif isinstance(one, bytes):
        new = bytes(mutated(one, chance.randrange(1 << 30))) if one else b"x"
    elif isinstance(one, float):
        new = chance.choice((0.0, -1.0, float("nan"), float("inf")))
    else:
        new = chance.choice((0, 1, 2, 3, 5, 64, 255, 1 << 20, (1 << 31) - 1, int(one) + 1))
    try:
        if many:
            value[chance.randrange(len(value))] = new
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError):  # the field does not hold such a number
        message.ClearField(field.name)


def _kind_of(name: str) -> type[Any]:
    if name.endswith(".onnx"):
        import onnx

        return onnx.ModelProto
    from coremltools.proto import Model_pb2

    return Model_pb2.Model  # type: ignore[no-any-return]


def _commands(path: Path, model: Any) -> dict[str, Callable[[], object]]:
    from qwen3_export import api
    from qwen3_export.targets.lint import lint_artifact
    from qwen3_export.targets.registry import target_of

    def inspect() -> object:
        found = target_of(path).doors.inspect(path)
        return found.facts, list(found.tensors()), found.template

    def run() -> object:
        return api.generate(path, "Hi", model=model, max_new_tokens=2)

    return {
        "inspect": inspect,
        "lint": lambda: lint_artifact(target_of(path), path, model),
        "check": lambda: api.check(path, model),
        "run": run,
    }


def work() -> None:
    """What a process does: every case that it is asked for, told line by line."""
    asked, scratch = json.loads(sys.argv[1]), Path(sys.argv[2])
    from qwen3_export.checkpoint.model import load
    from qwen3_export.errors import ExportError

    model = load(asked["model"])
    folder, name = Path(asked["folder"]), asked["name"]
    place = scratch / "damaged" / folder.name
    shutil.rmtree(place.parent, ignore_errors=True)
    shutil.copytree(folder, place)
    data = (folder / name).read_bytes()
    for opened in (_commands(place, model)[command] for command in asked["commands"]):
        opened()  # the sound artifact, for what it takes
    limit = _peak_bytes() + MOST_BYTES
    for seed in asked["seeds"]:
        new = mutated_message(data, _kind_of(name), seed) if asked["in_fields"] else mutated(data, seed)
        (place / name).write_bytes(new)
        commands = _commands(place, model)
        for command in asked["commands"]:
            _say({"seed": seed, "command": command})
            signal.alarm(SECONDS)
            try:
                commands[command]()
                kind, told = "sound", ""
            except ExportError as error:
                kind, told = "refused", str(error)
            except Exception:  # what must not come
                kind, told = "traceback", traceback.format_exc()[-1500:]
            signal.alarm(0)
            if _peak_bytes() > limit:
                kind, told = "memory", f"{_peak_bytes() / 1e9:.2f} GB; {told}"
            _say({"seed": seed, "command": command, "kind": kind, "told": told})
            if kind == "memory":
                sys.exit(3)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(line: dict[str, object]) -> None:
    print("\x01" + json.dumps(line), flush=True)
