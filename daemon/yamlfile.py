"""Reads one YAML mapping and remembers on which line each key stands, so that an error can point at it; `plain` reads
what others wrote, and remembers nothing.

Keys that come twice are refused (YAML's own loaders let the last one win in silence), aliases too (a small file could
unfold into a huge one), and so is a file larger or deeper than a configuration can be.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

import yaml

from daemon.faults import TowerError

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 32
Key = tuple[str | int, ...]
_TAGS: Final = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}


def read(path: Path, *, decides: bool = False) -> tuple[dict[str, Any], dict[Key, int]]:
    """The mapping in `path` and the line of every key in it. Raises TowerError TWR101, TWR102.

    What `decides` whom this process trusts must not be everybody's to write.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if decides and mode & stat.S_IWOTH:
                raise TowerError(
                    "TWR102",
                    f"{path} may be written by everybody (mode {stat.S_IMODE(mode):04o}), who could change what this "
                    "process trusts",
                    mend=f"`chmod o-w {path}`, after a look at what is in it",
                )
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise TowerError("TWR102", f"cannot read {path}: {exc.strerror or exc}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise TowerError("TWR102", f"{path} is larger than {MAX_FILE_BYTES} bytes: that is no configuration")
    return parse(data, source=str(path))


def parse(data: bytes, *, source: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """As `read`, for bytes at hand; `source` names them in errors."""
    loader = None
    try:
        _refuse_depth(data, source)
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        lines: dict[Key, int] = {}
        value = _value(loader, node, (), lines, set(), source) if node is not None else {}
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: such as a date that is none
        raise TowerError("TWR102", _syntax(exc, source)) from exc
    finally:
        if loader is not None:
            loader.dispose()
    if value is None:
        return {}, {}
    if not isinstance(value, dict):
        raise TowerError("TWR102", f"{source} holds a {type(value).__name__}, but `key: value` lines are expected")
    return value, lines


def plain(data: str | bytes) -> Any:
    """One document that somebody else may have written. YAMLError for what is none, has aliases, or is too deep.

    YAML's own loader merges aliases (`<<: [*a, *a]`) by copying: a few hundred bytes keep it busy for hours.
    """
    loader = _Plain(data)
    try:
        return loader.get_single_data()
    except ValueError as exc:  # such as a date that is none
        raise yaml.YAMLError(str(exc)) from exc
    finally:
        loader.dispose()


class _Plain(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent) or self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"aliases, or deeper than {MAX_DEPTH} levels", problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _refuse_depth(data: bytes, source: str) -> None:
    """Before anything is built: the parser's time grows with the square of the depth."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise TowerError("TWR102", f"{source}: nested deeper than {MAX_DEPTH} levels: that is no configuration")


def _value(
    loader: yaml.SafeLoader, node: yaml.Node, path: Key, lines: dict[Key, int], seen: set[int], source: str
) -> Any:
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise TowerError("TWR101", f"{source}:{line}: aliases (*name) are not read; write the value out")
    seen.add(id(node))
    if node.tag not in _TAGS:
        raise TowerError("TWR102", f"{source}:{line}: not YAML for a configuration: the tag {node.tag} is not read")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node)
            at = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise TowerError("TWR101", f"{source}:{at}: the key {key!r} is not a text; put it in quotes")
            if key in result:
                first = lines[(*path, key)]
                raise TowerError("TWR101", f"{source}:{at}: the key {key!r} stands twice (first on line {first})")
            lines[(*path, key)] = at
            result[key] = _value(loader, value_node, (*path, key), lines, seen, source)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            items.append(_value(loader, item, (*path, index), lines, seen, source))
        return items
    return loader.construct_object(node)


def _syntax(exc: Exception, source: str) -> str:
    if isinstance(exc, yaml.MarkedYAMLError) and exc.problem_mark is not None:
        where = f"{source}:{exc.problem_mark.line + 1}:{exc.problem_mark.column + 1}"
        return f"{where}: not YAML: {exc.problem or exc.context}"
    return f"{source}: not YAML: {exc}"
