"""Names to things: strict registries, and the plugin files and packages that fill them.

A registry refuses a name that is taken, and answers an unknown one with the nearest that it has. Plugins come from two
places: a file given by its path (`--plugin my_mixer.py`), or an installed package that declares an entry point in the
group `zoology.plugins`.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

T = TypeVar("T")

ENTRY_POINT_GROUP = "zoology.plugins"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class InputError(ValueError):
    """What the user gave cannot be used. The message is for them: it names the value, and what is allowed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the names nearest to `name`, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    near += [k for k in known if k not in near and len(name) > 2 and (name in k or k in name)]
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"known: {', '.join(known)}" if known else "none is registered"


class Registry(Generic[T]):
    """A mapping from names in kebab-case to registered things.

    Args:
        kind: what the things are called in messages, such as "mixer".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that puts a thing under `name`.

        Raises:
            InputError: the name is not kebab-case, or belongs to something else. Defining the same class again from
                the same file (a notebook cell run twice) replaces it.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"{self.kind} name {name!r}: use lower-case letters, digits and dashes")

        def add(thing: T) -> T:
            old = self._entries.get(name)
            if old is not None and _origin(old) != _origin(thing):
                raise InputError(
                    f"{self.kind} name {name!r} is taken by {_origin(old)[1]} in {_origin(old)[0]}: choose another"
                )
            self._entries[name] = thing
            return thing

        return add

    def get(self, name: str) -> T:
        """The thing under `name`.

        Raises:
            InputError: nothing is, with the nearest names.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"unknown {self.kind} {name!r}: {did_you_mean(name, self._entries)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def _origin(thing: object) -> tuple[str, str]:
    """Where a class was written: (file, qualified name). The file tells two plugins with equal class names apart."""
    module = sys.modules.get(getattr(thing, "__module__", ""))
    file = getattr(module, "__file__", None) or getattr(thing, "__module__", "?")
    return str(file), getattr(thing, "__qualname__", repr(thing))


def paper(thing: object) -> str:
    """The source that a registered class names in its docstring: what follows `Source:` up to the end of the line."""
    found = re.search(r"Source:\s*(.+)", inspect.getdoc(thing) or "")
    return found.group(1).strip() if found else ""


def first_line(thing: object) -> str:
    """The first paragraph of a docstring as one line, up to its source."""
    text = (getattr(thing, "__doc__", None) or "").strip().split("\n\n")[0]
    return " ".join(text.split()).split(" Source:")[0]


_loaded: dict[str, tuple[str, ModuleType]] = {}


def load_plugin(path: str | Path, source: str | None = None) -> ModuleType:
    """Import a plugin file, which registers what it holds. A second call for the same content does nothing.

    Args:
        path: the file. Its folder is importable from it, as it would be for a script.
        source: the file's text, for a worker on a machine that has no such file.

    Raises:
        InputError: there is no such file, it does not import, or it registers a name that is taken.
    """
    path = Path(path).expanduser().absolute()
    if source is None:
        source = read_plugin(path)
    digest = hashlib.sha256(source.encode()).hexdigest()
    if str(path) in _loaded and _loaded[str(path)][0] == digest:
        return _loaded[str(path)][1]
    name = f"zoology_plugin_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{digest[:8]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # before execution, so that its classes know their module
    folder = str(path.parent)
    if path.parent.is_dir() and folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except InputError as error:
        del sys.modules[name]
        raise InputError(f"plugin {path.name}: {error}") from error
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"plugin {path.name} does not import: {_where(error, path)}{reason}") from error
    _loaded[str(path)] = (digest, module)
    return module


def read_plugin(path: str | Path) -> str:
    """The text of a plugin file.

    Raises:
        InputError: it is missing, or is no Python text.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"plugin {str(path)!r} is a folder: name the file in it")
    if not path.is_file():
        raise InputError(f"plugin {str(path)!r}: there is no such file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"plugin {str(path)!r} cannot be read: {error}") from error


def _where(error: BaseException, path: Path) -> str:
    """The line of `path` in which `error` arose, as 'line 7: ', or nothing."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: " if error.lineno else ""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def load_entry_points() -> None:
    """Import every installed package that declares an entry point in the group `zoology.plugins`.

    One that fails is left out with a warning: a broken package must not take the others with it.
    """
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(
                f"plugin package {entry.name!r} ({entry.value}) was left out: {type(error).__name__}: {error}",
                stacklevel=2,
            )
