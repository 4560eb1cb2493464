"""Damage the files of an artifact in hundreds of seeded ways, and see how every command ends on them.

    damaged(folder, model, {"model.onnx": range(200), "genai_config.json": range(50)}, commands=("inspect", "lint"))

Seed 0 removes the file, and seed 1 puts a folder in its place. Each case is opened in a process that may die: a native
runtime can end it, and then the next process goes on behind that case. What must never come is an error that is not one
of ours (a traceback for the user), a case that takes longer than ``SECONDS``, or more memory than ``MOST_BYTES`` above
what the sound artifact takes.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing import damaged_bytes, damaged_json

__all__ = ["Ending", "damaged", "mutated", "unforeseen"]

REMOVED, FOLDER = 0, 1
SECONDS = 60
MOST_BYTES = 1_000_000_000
# Beyond this no address is given: a case that wants all memory must not take the machine's.
MOST_ADDRESSES = 16_000_000_000
# Most of a file is weights; damage there changes values, and only its first bytes and last ones say what they are.
ENDS = 8192
# How often a way into a message ends at a level.
STOPS = 0.1
MOST_TOLD = 1500
FORESEEN = ("sound", "refused", "fails")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a command ended on a case, and what was told.

    ``kind`` is ``sound``, ``refused`` (a sentence), ``fails`` (a report or findings), ``crash`` (of the process),
    ``hang``, ``memory`` or ``traceback``.
    """

    name: str
    seed: int
    command: str
    kind: str
    told: str


def mutated(data: bytes, name: str, seed: int) -> bytes:
    """The file with one kind of damage; the same for the same name and seed."""
    chance = random.Random(f"{name} {seed}")
    if name.endswith(".json") and chance.random() < 0.9:
        return damaged_json(json.loads(data), chance)
    if name.endswith((".onnx", ".mlmodel")) and chance.random() < 0.7:
        return _damaged_message(data, _message_type(name), chance)
    if len(data) <= 2 * ENDS or chance.random() < 0.2:
        return damaged_bytes(data, chance)
    if chance.random() < 0.5:
        return damaged_bytes(data[:ENDS], chance) + data[ENDS:]
    return data[:-ENDS] + damaged_bytes(data[-ENDS:], chance)


def damaged(
    folder: Path, model: Path | str, cases: Mapping[str, Iterable[int]], *, commands: Sequence[str], scratch: Path
) -> list[Ending]:
    """Every seed's damage to each file of an artifact (by its path within the folder), opened by every command."""
    left, endings = [[name, seed] for name, seeds in cases.items() for seed in seeds], []
    while left:
        asked = {"folder": str(folder), "model": str(model), "cases": left, "commands": list(commands)}
        # The package first: this folder has a folder of its name.
        begin = (
            f"import sys, qwen3_export; sys.path.append({str(Path(__file__).parent)!r}); import damage; damage.work()"
        )
        command = [sys.executable, "-c", begin, json.dumps(asked), str(scratch)]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, check=False
        )
        lines = [json.loads(line[1:]) for line in process.stdout.splitlines() if line.startswith("\x01")]
        endings += [Ending(**line) for line in lines if "kind" in line]
        if process.returncode == 0:
            return endings
        assert lines, f"the process died before it began: {process.stderr[-2000:]}"
        last = lines[-1]
        if "kind" not in last:
            kind = "hang" if process.returncode == -signal.SIGALRM else "crash"
            endings.append(Ending(**last, kind=kind, told=f"exit {process.returncode}: {process.stderr[-300:]}"))
        left = left[left.index([last["name"], last["seed"]]) + 1 :]
    return endings


def unforeseen(endings: Iterable[Ending]) -> list[Ending]:
    """Those that ended neither well nor in one sentence of ours."""
    return [
        ending
        for ending in endings
        if ending.kind not in FORESEEN
        or (ending.kind == "refused" and ("\n" in ending.told or len(ending.told) > 1500))
    ]


def _damaged_message(data: bytes, kind: type[Any], chance: random.Random) -> bytes:
    """A protobuf that can be read, with some of its fields dropped or set to other values."""
    message = kind.FromString(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        _mutate_field(_descend(message, chance), chance)
    return bytes(message.SerializeToString())


def _descend(message: Any, chance: random.Random) -> Any:
    """The message, or one somewhere in it."""
    while chance.random() > STOPS:
        inner = [list(_held(field, value)) for field, value in message.ListFields() if field.message_type is not None]
        inner = [parts for parts in inner if parts]
        if not inner:
            return message
        # Mostly into the longest list: operations, nodes, tensors.
        parts = max(inner, key=len) if chance.random() < 0.7 else chance.choice(inner)
        message = chance.choice(parts)
    return message


def _held(field: Any, value: Any) -> Iterator[Any]:
    if field.message_type.GetOptions().map_entry:
        yield from (part for part in value.values() if hasattr(part, "ListFields"))
    elif hasattr(value, "add"):
        yield from value
    else:
        yield value


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
        new = damaged_bytes(one, chance)
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


def _message_type(name: str) -> type[Any]:
    if name.endswith(".onnx"):
        import onnx

        return onnx.ModelProto
    from coremltools.proto import Model_pb2

    return Model_pb2.Model  # type: ignore[no-any-return]


def _commands(path: Path, model: Any) -> dict[str, Callable[[], list[str]]]:
    """Each command as a function that gives what it found wrong."""
    from qwen3_export import api
    from qwen3_export.parity.markdown import to_markdown
    from qwen3_export.parity.summary import to_text
    from qwen3_export.targets.lint import lint_artifact
    from qwen3_export.targets.registry import target_of

    def inspect() -> list[str]:
        list(target_of(path).doors.inspect(path).tensors())
        return []

    def lint() -> list[str]:
        return [found.text for found in lint_artifact(target_of(path), path, model).findings if found.is_error]

    def run() -> list[str]:
        api.generate(path, "Hi", model=model, max_new_tokens=2)
        return []

    def check() -> list[str]:
        report = api.check(path, model)
        for ending in ("json", "html", "xml"):
            report.save(path.parent / f"report.{ending}", overwrite=True)
        assert to_text(report)
        assert to_markdown([report])
        return report.reasons

    return {"inspect": inspect, "lint": lint, "check": check, "run": run}


def work() -> None:
    """Do a process's part: every case that it is asked for, told line by line."""
    asked, scratch = json.loads(sys.argv[1]), Path(sys.argv[2])
    from qwen3_export.checkpoint.model import load

    folder = Path(asked["folder"])
    place = scratch / "damaged" / folder.name
    shutil.rmtree(place.parent, ignore_errors=True)
    shutil.copytree(folder, place)
    commands = _commands(place, load(asked["model"]))
    for command in asked["commands"]:
        commands[command]()  # the sound artifact, for what it takes
    limit = _peak_bytes() + MOST_BYTES
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + MOST_ADDRESSES, resource.RLIM_INFINITY))
    for name, seed in asked["cases"]:
        sound, path = (folder / name).read_bytes(), place / name
        path.unlink()
        if seed == FOLDER:
            path.mkdir()
        elif seed != REMOVED:
            path.write_bytes(mutated(sound, name, seed))
        for command in asked["commands"]:
            case = {"name": name, "seed": seed, "command": command}
            _say(case)
            kind, told = _ending(commands[command])
            if _peak_bytes() > limit:
                kind, told = "memory", f"{_peak_bytes() / 1e9:.2f} GB; {told}"
            _say({**case, "kind": kind, "told": told})
            if kind == "memory":
                sys.exit(3)
        if path.is_dir():
            path.rmdir()
        path.write_bytes(sound)


def _ending(command: Callable[[], list[str]]) -> tuple[str, str]:
    from qwen3_export.errors import ExportError

    signal.alarm(SECONDS)
    try:
        found = command()
    except ExportError as error:
        return "refused", str(error)
    except BaseException:  # what must not come; a panic of tokenizers is no Exception
        return "traceback", traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    return ("fails", found[0]) if found else ("sound", "")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(line: Mapping[str, object]) -> None:
    print("\x01" + json.dumps(line), flush=True)
