"""Reading a run spec from a TOML file, with errors that name the key and the cure."""

from __future__ import annotations

import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.schema import RunSpec

M = TypeVar("M", bound=BaseModel)


class SpecError(Exception):
    """The file is missing, is not TOML or does not describe a run. One line per problem."""


def load(path: str | Path) -> RunSpec:
    """Read and check a run spec.

    Raises:
        SpecError: with the file's name and, for every wrong key, what is wrong and what is expected.
    """
    path = Path(path)
    try:
        return parse(read_toml(path), source=str(path))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such config file; see configs/demo.toml for a commented example") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Raises SpecError when it cannot be read or is not TOML, FileNotFoundError when it is not there."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None


def parse(raw: dict[str, Any], source: str) -> RunSpec:
    """Check a spec that is already a dictionary; `source` opens every line of the error."""
    return check(raw, source, RunSpec)


def check(raw: dict[str, Any], source: str, model: type[M]) -> M:
    """The same for any model: raises SpecError, one line per wrong key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise SpecError("\n".join(f"{source}: {_explain(problem, model)}" for problem in error.errors())) from None


def _explain(problem: ErrorDetails, model: type[BaseModel]) -> str:
    section, key = _walk(problem["loc"], model)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggestion(section, key)}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "union_tag_invalid":
        message = f"kind is {problem['ctx']['tag']!r}; it must be one of {problem['ctx']['expected_tags']}"
    elif problem["type"] == "union_tag_not_found":
        message = "key 'kind' is missing"
    return f"{key}: {message}" if key else message


def _walk(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[type[BaseModel] | None, str]:
    """The section that the last part of an error's location stands in, and the key as it is written in the file.

    Where a section comes in several kinds, pydantic puts the kind into the location; the file does not.
    """
    section: Any = model
    key: list[str] = []
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            field = section.model_fields.get(str(part))
            section = field.annotation if field else None
        else:
            kinds = [
                kind for kind in typing.get_args(section) if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            section = next(
                (kind for kind in kinds if part in typing.get_args(kind.model_fields["kind"].annotation)), None
            )
            if section:
                continue
        key.append(str(part))
    key.extend(str(part) for part in location[-1:])
    known = isinstance(section, type) and issubclass(section, BaseModel)
    return section if known else None, ".".join(key)


def _suggestion(section: type[BaseModel] | None, key: str) -> str:
    """'; did you mean ...?' for a misspelt key, from the fields of the section that it stands in."""
    if section is None:
        return ""
    near = difflib.get_close_matches(key.rpartition(".")[2], section.model_fields, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(section.model_fields)}"
