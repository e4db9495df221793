"""A folder of Markdown, text and code, or one such file. Each file becomes a memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from memory_core.errors import InvalidArgument
from memory_core.records.memory import MemoryType
from memory_server.transfer import files, foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found
from memory_server.transfer.source import Source

_DOCUMENTS = ".md .markdown .mdx .rst .txt .text .org .adoc .tex .html .htm .csv .tsv"
_CODE = (
    ".py .pyi .js .mjs .cjs .ts .tsx .jsx .go .rs .java .kt .kts .scala .c .h .cc .cpp .hpp .cs .swift .m .rb .php .pl "
    ".lua .r .jl .sh .bash .zsh .ps1 .sql .yaml .yml .toml .ini .cfg .json .xml .css .scss .vue .svelte .proto .ex "
    ".exs .erl .hs .ml .clj .dart .tf .gradle .cmake"
)
KINDS: dict[str, MemoryType] = {
    **dict.fromkeys(_DOCUMENTS.split(), MemoryType.DOCUMENT),
    **dict.fromkeys(_CODE.split(), MemoryType.CODE),
}
_MAX_DEPTH = 100
_SKIPPED = {"node_modules", "__pycache__", "venv", "dist", "build", "target", "vendor"}


def _matches(source: Source) -> bool:
    return source.path.is_dir() or source.path.suffix.lower() in KINDS


def _read(source: Source) -> Iterator[Found]:
    if source.path.is_file():
        yield from _file(source.path, source.path.name)
        return
    top, unreadable = source.path.resolve(), list[OSError]()
    # By descriptors, and without following links: the owner of the folder may exchange parts of it meanwhile.
    for folder, folders, names, descriptor in os.fwalk(top, onerror=unreadable.append):
        place = Path(folder).relative_to(top)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        if len(place.parts) >= _MAX_DEPTH and folders:
            yield Bad(place.as_posix(), f"there are more than {_MAX_DEPTH} folders inside each other")
            folders.clear()
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix.lower() in KINDS and not name.startswith(".") and not path.is_symlink():
                yield from _file(path, (place / name).as_posix(), descriptor)
    for error in unreadable:
        yield Bad(os.path.relpath(str(error.filename), top), f"it cannot be read: {error.strerror}")


def _file(path: Path, name: str, folder: int | None = None) -> Iterator[Found]:
    """Read a file; with the descriptor of its folder, only if it is there and no link."""
    try:
        content = files.read_whole(path, files.MAX_LINE, folder).decode("utf-8-sig")
        changed = os.stat(path if folder is None else path.name, dir_fd=folder).st_mtime
    except OSError as error:
        yield Bad(name, f"it cannot be read: {error.strerror}")
        return
    except InvalidArgument as error:
        yield Bad(name, error.message)
        return
    except UnicodeDecodeError:
        yield Bad(name, "it is not UTF-8 text")
        return
    if content.strip():
        yield Foreign(
            where=name,
            source_id=name,
            content=content,
            memory_type=KINDS[path.suffix.lower()],
            tags=(path.suffix.lower()[1:],),
            source=foreign.label(name),
            occurred_at=changed,
        )


FORMAT = Format("folder", _matches, _read)
