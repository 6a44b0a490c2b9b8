"""Files that are whole at any time: readers, and a process killed while it writes, never leave half of one."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Puts UTF-8 text in place in one step. Raises: OSError; what was there then stays."""
    part = path.with_name(f"{path.name}.tmp")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
