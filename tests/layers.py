"""Which file imports which, and what of that goes against the layers.

    offences(Path("."))  # one sentence each, none if every import points downwards

Imports are read, not run, so that those inside functions and for type checkers alone count too, and so does a module
that is named by a string: a table of names is how most of them are imported late.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FOLDERS", "Import", "find_imports", "layer_of", "module_names", "offences"]

PACKAGE = "qwen3_export"
# Folder of the repository -> the package that it is
FOLDERS = {PACKAGE: PACKAGE, **{name: f"{PACKAGE}.{name}" for name in ("quantizers", "calibration", "targets")}}

# Lowest first. An import may point to the same layer or to a lower one. CORE stands for whatever is not named here.
CORE = "core"
LAYERS = (
    ("errors", "units", "parallel", "data", "files"),
    (CORE, "checkpoint", "reference"),
    ("quantizers",),
    ("calibration",),
    ("parity", "generation"),
    ("targets",),
    ("api", "__init__"),
    ("cli",),
)
RANKS = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}
# Parts of one layer that know nothing of each other
APART = (("parity", "generation"),)
# What any file may take from the package's own __init__
CONSTANTS = frozenset({"__version__"})

MODULE_AND_DOT = re.compile(rf"({PACKAGE}(?:\.\w+)*)\.")


@dataclass(frozen=True)
class Import:
    """Line ``line`` of ``path`` (below the root), which is the module ``importer``, names the module ``imported``."""

    path: Path
    line: int
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.imported}"


def offences(root: Path) -> list[str]:
    """Every import of a repository's four folders that its layers forbid, as a sentence."""
    imports = find_imports(root)
    return [*_upward(imports), *_sideways(imports), *_between_targets(imports)]


def find_imports(root: Path) -> list[Import]:
    """Every import of one of the repository's modules by another."""
    names = module_names(root)
    found = [
        Import(path.relative_to(root), line, importer, imported)
        for importer, path in names.items()
        for line, imported in _imports_of(path, importer, known=names.keys())
        if imported != importer
    ]
    return sorted(dict.fromkeys(found), key=lambda found: (found.path, found.line, found.imported))


def module_names(root: Path) -> dict[str, Path]:
    """Module name -> its file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def layer_of(module: str) -> int:
    """The place of a module's layer in ``LAYERS``."""
    return RANKS[_part(module)]


def _part(module: str) -> str:
    below = module.split(".")[1:]
    if not below:
        return "__init__"
    return below[0] if below[0] in RANKS else CORE


def _imports_of(path: Path, importer: str, *, known: Collection[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, importer, is_package=path.name == "__init__.py")
            for alias in node.names:
                if f"{source}.{alias.name}" in known:
                    yield node.lineno, f"{source}.{alias.name}"
                elif source in known and not (source == PACKAGE and alias.name in CONSTANTS):
                    yield node.lineno, source
        elif isinstance(node, ast.Constant) and node.value != PACKAGE and str(node.value) in known:
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
            start = MODULE_AND_DOT.match(str(node.values[0].value))
            if start is not None and start[1] in known and start[1] != PACKAGE:
                yield node.lineno, start[1]


def _absolute(node: ast.ImportFrom, importer: str, *, is_package: bool) -> str:
    """The module that a from-import names, dots at its start resolved."""
    if node.level == 0:
        return node.module or ""
    parents = importer.split(".")
    kept = parents[: len(parents) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _upward(imports: Sequence[Import]) -> Iterator[str]:
    for found in imports:
        if layer_of(found.imported) > layer_of(found.importer):
            yield f"{found}, which is of a higher layer"


def _sideways(imports: Sequence[Import]) -> Iterator[str]:
    for found in imports:
        parts = (_part(found.importer), _part(found.imported))
        if parts in APART or parts[::-1] in APART:
            yield f"{found}: {parts[0]} and {parts[1]} know nothing of each other"


def _between_targets(imports: Sequence[Import]) -> Iterator[str]:
    """From the folder of a target, no other target's is reached, nor through what targets share."""
    inside = [found for found in imports if {_part(found.importer), _part(found.imported)} == {"targets"}]
    packages = {found.importer.split(".")[2] for found in inside if found.importer.count(".") >= 3}

    def target(module: str) -> str | None:
        name = module.split(".")[2] if module.count(".") >= 2 else None
        return name if name in packages else None

    reached: dict[str, set[str]] = {}  # shared module -> targets that it leads to
    shared = [found for found in inside if target(found.importer) is None]
    for _ in range(len(shared) + 1):
        for found in shared:
            name = target(found.imported)
            leads_to = {name} if name is not None else reached.get(found.imported, set())
            reached.setdefault(found.importer, set()).update(leads_to)
    for found in inside:
        own, other = target(found.importer), target(found.imported)
        if own is None:
            continue
        if other is not None and other != own:
            yield f"{found}: a target knows nothing of another"
        others = reached.get(found.imported, set()) - {own} if other is None else set()
        if others:
            yield f"{found}, which leads to other targets: {', '.join(sorted(others))}"
