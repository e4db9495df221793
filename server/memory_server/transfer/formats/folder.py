"""A folder of Markdown, text and code, or one such file. Each file becomes a memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from memory_core.errors import InvalidArgument
from memory_core.records.memory import MemoryType
from memory_server.transfer import files, foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, Source

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
_SKIPPED = {"node_modules", "__pycache__", "venv", "dist", "build", "target", "vendor"}


def _matches(source: Source) -> bool:
    return source.path.is_dir() or source.path.suffix.lower() in KINDS


def _read(source: Source) -> Iterator[Found]:
    if source.path.is_file():
        yield from _file(source.path, source.path.name)
        return
    for folder, folders, names in os.walk(source.path):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED)
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix.lower() in KINDS and not name.startswith(".") and not path.is_symlink():
                yield from _file(path, path.relative_to(source.path).as_posix())


def _file(path: Path, name: str) -> Iterator[Found]:
    try:
        content = files.read_whole(path, files.MAX_LINE).decode("utf-8-sig")
        changed = path.stat().st_mtime
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
