"""File names that a checkpoint or an artifact states, kept inside its own folder.

``model.safetensors.index.json``, an ONNX graph and a Core ML package name other files. Whoever made them may have
written ``../../somebody/else`` or ``/etc/passwd``, so every such name goes through ``inside`` before a file is opened.

Symbolic links need a rule of their own, because a Hugging Face cache consists of them: each file of a snapshot is a
link to ``../../blobs/DIGEST``.

- A link that leads outside the folder is refused, unless folder and target lie in the same repository of a Hugging Face
  cache (``models--ORGANISATION--NAME``, which has ``blobs`` and ``snapshots`` in it).
- For a checkpoint (``follow_links=True``) the file itself may be a link to anywhere: people put a folder together with
  links to weights on another disk, and a link, unlike a name, cannot come out of a JSON file. The folders on the way to
  it may not.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from qwen3_export.errors import CheckpointError
from qwen3_export.files.shown import shown

__all__ = ["inside"]

MAX_BYTES, MAX_PART_BYTES = 1024, 255
DRIVE = re.compile(r"[A-Za-z]:")
# The end of a string in C, Windows' separator, and halves of characters, which JSON can spell.
IMPOSSIBLE = re.compile("[\0\\\\\ud800-\udfff]")


def inside(folder: Path, name: object, *, named_by: Path, follow_links: bool = False) -> Path:
    """The path of the file ``name`` in ``folder``; it need not exist.

    ``named_by`` is the file that states the name. Raises CheckpointError for names that are no relative path below the
    folder, and for symbolic links that lead out of it (see above).
    """
    reason = _why_unusable(name)
    if reason is None:
        assert isinstance(name, str)
        if _stays_within(folder / name, folder, follow_links=follow_links):
            return folder / name
        reason = "leads out of the folder through a symbolic link"
    raise CheckpointError(f"{named_by}: names the file {shown(name)}, which {reason}; get an undamaged copy")


def _why_unusable(name: object) -> str | None:
    """Why a name is no relative path of a file, as the end of a sentence; None for one that is."""
    if not isinstance(name, str):
        return "is no name"
    parts = PurePosixPath(name).parts
    sizes = [len(part.encode(errors="replace")) for part in parts]
    reasons = {
        "is empty": not parts,
        "is an absolute path": name.startswith("/") or DRIVE.match(name) is not None,
        "leads out of the folder": ".." in parts,
        "holds characters that file names do not have": IMPOSSIBLE.search(name) is not None,
        "is too long": len(name) > MAX_BYTES or max(sizes, default=0) > MAX_PART_BYTES,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _stays_within(path: Path, folder: Path, *, follow_links: bool) -> bool:
    try:
        real = folder.resolve()
        target = path.parent.resolve() / path.name if follow_links else path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    repository = _hub_repository(real)
    return target.is_relative_to(real) or (repository is not None and target.is_relative_to(repository))


def _hub_repository(folder: Path) -> Path | None:
    """The repository in a Hugging Face cache that a folder is part of."""
    for parent in folder.parents:
        if parent.name.startswith("models--") and (parent / "blobs").is_dir() and (parent / "snapshots").is_dir():
            return parent
    return None
