"""One loader for the configuration of every process: defaults < YAML file < environment < flags.

The rooms give a pydantic model (a `Section`); this module finds the values, says where each came from, and turns
every mistake into one TowerError that names the place, the key, what was expected and what to write instead.
pydantic-settings is not used: it neither tells where a value came from nor on which line an unknown key stands, and
both are half of this.

Environment: `TOWER_` + the key in capitals, levels joined by two underscores (`TOWER_HEALTH__ADDRESS`). Unknown ones
are refused as unknown keys of the file are, but for the variables that Kubernetes sets in every pod beside a Service
whose name starts with "tower".
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, ValidationInfo, field_validator

from certs.files import is_there
from daemon import yamlfile
from daemon.faults import TowerError
from daemon.log import Format, Level
from daemon.redact import REDACTED, is_secret_name, redact_text
from daemon.units import Duration as Duration
from daemon.units import Size as Size
from daemon.units import spelled
from daemon.yamlfile import Key

PREFIX: Final = "TOWER_"
_SERVICE_LINK: Final = re.compile(
    r"TOWER_(?:.+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP).*)?)"
)


class Section(BaseModel):
    """The base of every configuration model: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
    SHORT: ClassVar[str] = ""
    """The key that one word in the section's place means: with `kind`, `store: x` is `store: {kind: x}`."""

    @field_validator("*", mode="before")
    @classmethod
    def _names_something(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty path would be the directory that the process happens to be in."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if value == "" and (kind is Path or Path in get_args(kind)):
            raise ValueError("an empty path names no file and no directory")
        return value


class Log(Section):
    """Where the log goes is standard error; this is how much and in which form."""

    level: Level = "info"
    format: Format = "auto"


M = TypeVar("M", bound=Section)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """A validated configuration together with the origin of its values."""

    value: M
    origins: Mapping[Key, str]
    """"file x:1", "environment X" or "flag --x"; a key that is not there has its default."""

    def _origin(self, path: Key) -> str:
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        inner = [origin for key, origin in self.origins.items() if key[: len(path)] == path]
        return inner[0] if inner else "default"

    def render(self) -> str:
        """The effective configuration as YAML, each value's origin in a comment; without secrets it reads back."""
        lines: list[str] = []
        _render(_nested(self.value, ()), (), lines, self)
        return "\n".join(lines) + "\n"


def load(
    model: type[M],
    *,
    file: Path | None = None,
    required: bool = True,
    environ: Mapping[str, str] | None = None,
    reserved: Collection[str] = (),
    flags: Mapping[str, Any] | None = None,
    called: Mapping[str, str] | None = None,
) -> Loaded[M]:
    """Loads `model`. Raises TowerError TWR101 (a wrong value or key) or TWR102 (the file cannot be read).

    `required=False` lets a missing `file` be: for a default path that nobody named. `flags` maps dotted keys to values;
    those that are None were not given; `called` says what a flag is called that has not its key's last name. `reserved`
    names environment variables that others read (`TOWER_CONFIG`).
    """
    values: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    if file is not None and (required or is_there(file)):
        values, lines = yamlfile.read(file, decides=True)
        for key in list(lines):
            if (full := _full(model, key, _at(values, key))) != key:
                _put(values, full, _at(values, key), {}, "")
                lines[full] = lines[key]
        origins = {key: f"file {file}:{line}" for key, line in lines.items() if not isinstance(_at(values, key), dict)}
        problems = [
            f"{file}:{lines.get(key, 1)}: unknown key {dotted(key)!r}{hint}"
            for key, hint in _unknown(model, values, ())
        ]
        _refuse(problems)
    _refuse(list(_environment(model, os.environ if environ is None else environ, reserved, values, origins)))
    for name, given in (flags or {}).items():
        if given is not None:
            path = tuple(name.split("."))
            flag = (called or {}).get(name) or f"--{path[-1].replace('_', '-')}"
            _put(values, _full(model, path, given), given, origins, f"flag {flag}")
    try:
        return Loaded(model.model_validate(values), origins)
    except ValidationError as exc:
        _refuse([_wrong(error, values, origins, file) for error in exc.errors(include_url=False)])
        raise  # unreachable: pydantic always names at least one error


def _refuse(problems: list[str]) -> None:
    if len(problems) == 1:
        raise TowerError("TWR101", problems[0])
    if problems:
        raise TowerError("TWR101", "\n  ".join([f"{len(problems)} problems", *problems]) + "\n ")


def _environment(
    model: type[Section],
    environ: Mapping[str, str],
    reserved: Collection[str],
    values: dict[str, Any],
    origins: dict[Key, str],
) -> Iterator[str]:
    """Puts what the environment sets into `values`; yields a problem for each variable that fits no key."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in reserved:
            continue
        if _SERVICE_LINK.fullmatch(name) and _is_service_link(name, environ):
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        if not _known(model, path):
            known = {PREFIX + "__".join(map(str, key)).upper() for key in _paths(model, ())}
            yield f"environment: unknown variable {name}{_nearest(name, known)}"
            continue
        text = environ[name]
        value: Any = text
        if text[:1] in "[{" and text:
            try:
                value = yamlfile.plain(text)
            except yaml.YAMLError:
                yield f"environment: {name} starts like a list or mapping but is not YAML"
                continue
        _put(values, _full(model, path, value), value, origins, f"environment {name}")


def _is_service_link(name: str, environ: Mapping[str, str]) -> bool:
    """Whether `name` has the value that Kubernetes (or Docker's links) gives it, not one that a person meant."""
    return "SERVICE_" in name or "://" in environ[name] or name.rsplit("_PORT_", 1)[0] + "_PORT" in environ


def _put(values: dict[str, Any], path: Key, value: Any, origins: dict[Key, str], origin: str) -> None:
    for key in [key for key in origins if key[: len(path)] == path]:
        del origins[key]
    origins[path] = origin
    level: Any = values
    for name in path[:-1]:
        inner = level.get(name)
        if not isinstance(inner, dict):
            inner = level[name] = {}
        level = inner
    level[path[-1]] = value


def _full(model: type[Section], path: Key, value: Any) -> Key:
    """Where a value belongs: one word in the place of a section that has a short form is the value of that key."""
    section: type[Section] | None = model
    for name in path:
        field = section.model_fields.get(str(name)) if section else None
        section = _section(field.annotation) if field and not _container(field.annotation) else None
    short = section.SHORT if section else ""
    return (*path, short) if short and isinstance(value, str) else path


def _section(annotation: Any) -> type[Section] | None:
    """The Section inside a field's type (`Section`, `Section | None`), if it is one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = [section for section in map(_section, get_args(annotation)) if section is not None]
    return found[0] if len(found) == 1 else None


def _container(annotation: Any) -> bool:
    """Whether a field holds many (a list or mapping of sections), so that an index or a free key stands between."""
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, tuple, dict, set, frozenset, Mapping):
        return True
    return any(_container(argument) for argument in get_args(annotation))


def _unknown(model: type[Section], values: Mapping[str, Any], path: Key) -> Iterator[tuple[Key, str]]:
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            yield (*path, name), _nearest(name, set(model.model_fields))
            continue
        section = _section(field.annotation)
        if section is None:
            continue
        if not _container(field.annotation):
            if isinstance(value, dict):
                yield from _unknown(section, value, (*path, name))
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for index, item in items:
            if isinstance(item, dict):
                yield from _unknown(section, item, (*path, name, index))


def _known(model: type[Section], path: tuple[str, ...]) -> bool:
    field = model.model_fields.get(path[0])
    if field is None:
        return False
    if len(path) == 1:
        return True
    section = _section(field.annotation)
    return section is not None and not _container(field.annotation) and _known(section, path[1:])


def _paths(model: type[Section], path: Key) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        if section is not None and not _container(field.annotation):
            yield from _paths(section, (*path, name))
        else:
            yield (*path, name)


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(sorted(known))}"


def _at(values: Any, path: Key) -> Any:
    for key in path:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _wrong(error: Any, values: dict[str, Any], origins: Mapping[Key, str], file: Path | None) -> str:
    path = _real_path(error["loc"], values, missing=error["type"] == "missing")
    place = next((origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins), None)
    if place is None and path:  # a list or mapping as a whole: where its first value stands
        place = next((origin for key, origin in origins.items() if key[: len(path)] == path), None)
    if error["type"] == "missing":
        where = f"{file}: " if file else ""
        return f"{where}the key {dotted(path)!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = error["input"]
    shown = ""
    known = repr(got) in message  # some messages say it themselves
    if isinstance(got, (str, int, float, bool)) and not known and not any(is_secret_name(str(key)) for key in path):
        shown = f", but is {redact_text(repr(got))[:80]}"
    where = place.removeprefix("file ") + ": " if place else ""
    named = f"{dotted(path)}: " if path else ""
    return f"{where}{named}{message}{shown}"


def _real_path(loc: tuple[str | int, ...], values: Any, *, missing: bool) -> Key:
    """pydantic puts names of union members into the path: keep what stands in the values (and a missing last key)."""
    path: list[str | int] = []
    for index, key in enumerate(loc):
        inner = _at(values, (*path, key))
        last = index == len(loc) - 1
        if inner is not None or (last and missing) or (isinstance(values, dict) and not path):
            path.append(key)
    return tuple(path)


def dotted(path: Key) -> str:
    """`("services", 0, "name")` as `services[0].name`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def _nested(value: Any, path: Key) -> Any:
    """A value as plain data for printing, secrets replaced."""
    if isinstance(value, SecretStr):
        return REDACTED if value.get_secret_value() else ""
    if path and value not in (None, "") and is_secret_name(str(path[-1])):
        return REDACTED
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {name: _nested(spelled(getattr(value, name), field.metadata), (*path, name)) for name, field in fields}
    if isinstance(value, Mapping):
        return {str(key): _nested(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_nested(item, (*path, index)) for index, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return redact_text(str(value))


def _render(plain: Any, path: Key, lines: list[str], loaded: Loaded[Any]) -> None:
    for key, value in plain.items():
        at = (*path, key)
        indent = "  " * (len(at) - 1)
        name = yaml.safe_dump(key, width=1000).removesuffix("\n").removesuffix("\n...")
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{name}:")
            _render(value, at, lines, loaded)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=100_000, sort_keys=False)
            lines.append(
                f"{indent}{name}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}  # {loaded._origin(at)}"
            )
