"""Reading a run spec from a TOML file, with errors that name the key and the cure."""

from __future__ import annotations

import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.schema import RunSpec


class SpecError(Exception):
    """The file is missing, is not TOML or does not describe a run. One line per problem."""


def load(path: str | Path) -> RunSpec:
    """Read and check a run spec.

    Raises:
        SpecError: with the file's name and, for every wrong key, what is wrong and what is expected.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such config file; see configs/demo.toml for a commented example") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    return parse(raw, source=str(path))


def parse(raw: dict[str, Any], source: str) -> RunSpec:
    """Check a spec that is already a dictionary; `source` opens every line of the error."""
    try:
        return RunSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError("\n".join(f"{source}: {_explain(problem)}" for problem in error.errors())) from None


def _explain(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggestion(problem['loc'])}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _suggestion(location: tuple[int | str, ...]) -> str:
    """'; did you mean ...?' for a misspelt key, from the fields of the section that it stands in."""
    section: Any = RunSpec
    for part in location[:-1]:
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, BaseModel) else None
        if field is None:
            return ""
        section = field.annotation
        if typing.get_origin(section) is not None:
            return ""
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return ""
    near = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(section.model_fields)}"
