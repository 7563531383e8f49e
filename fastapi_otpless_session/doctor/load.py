"""Imports the application as a server would; its own code gets a deadline, and cannot write into the report."""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Router

from fastapi_otpless_session.errors import ConfigurationError


class LoadError(Exception):
    """The application cannot be had; the text says why, and what to write."""


def load(target: str, *, app_dir: Path, factory: bool, deadline: float) -> Any:
    """Import `module:attribute` and return the application; a function without parameters is taken for a factory.

    What the application prints goes to standard error. Raises `LoadError`, and `ConfigurationError` where the
    application's own settings of this package are wrong.
    """
    module, colon, attribute = target.partition(":")
    if not colon or not module or not attribute:
        raise LoadError(f"{target!r} is not an application; write module:attribute, as in myapp:app")
    if module.endswith(".py") and (app_dir / module).is_file():
        raise LoadError(f"{target!r} is not an application; write {_named(module, attribute)}")
    folder = str(app_dir.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        with guarded(deadline):
            return _application(_import(module, folder), attribute, target, factory=factory)
    except TimeoutError:
        raise LoadError(f"Importing {target} took longer than {deadline:g} s; --timeout gives it more") from None
    except (ConfigurationError, LoadError):
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(f"Importing {target} failed: {_described(error)}") from error


def _named(file: str, attribute: str) -> str:
    """Name what is in a file as an import does, where the folder to look in leads to it."""
    parts = Path(file).with_suffix("").parts
    return f"{'.'.join(parts)}:{attribute}" if all(map(str.isidentifier, parts)) else "module:attribute"


def _import(module: str, folder: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise LoadError(f"There is no module {error.name} in {folder}; --app-dir says where to look") from None
        raise


def _application(module: Any, attribute: str, target: str, *, factory: bool) -> Any:
    found = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise LoadError(f"{target}: {module.__name__} has no {attribute}") from None
    if _is_route(found, module):
        raise LoadError(f"{target} is no ASGI application but a route; {_wanted(module)}")
    is_made = factory or _is_factory(found)
    if is_made:
        found = found()
    if not _is_application(found):
        verb = "makes" if is_made else "is"
        raise LoadError(f"{target} {verb} no ASGI application but {_kind(found)}; {_wanted(module)}")
    return found


def _is_route(found: object, module: Any) -> bool:
    """Whether it is what a router of its module calls for some path: without parameters it would pass for a factory."""
    routers = [value for value in vars(module).values() if isinstance(value, Starlette | Router)]
    return any(getattr(route, "endpoint", None) is found for router in routers for route in router.routes)


def _is_application(found: Any) -> bool:
    """Whether it can be called with scope, receive and send; or, as in ASGI 2, with the scope alone."""
    if not callable(found):
        return False
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # it is not written in Python, and the server will see
        return True
    if _takes(signature, 3):
        return True
    names = [*signature.parameters]
    return names[:1] == ["scope"] and _takes(signature, 1) and not inspect.iscoroutinefunction(found)


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def _kind(found: Any) -> str:
    if not callable(found):
        return type(found).__name__
    if inspect.isclass(found):
        return "a class whose objects are made without scope, receive and send"
    what = "a function" if inspect.isroutine(found) else type(found).__name__
    return f"{what} that does not take scope, receive and send"


def _wanted(module: Any) -> str:
    """Say what to write instead: an application of the same module, where there is one."""
    names = [name for name, value in vars(module).items() if isinstance(value, Starlette)]
    if names:
        return f"{module.__name__}:{names[0]} is one"
    return "name what FastAPI() returned, as in myapp:app"


def _is_factory(found: object) -> bool:
    if not inspect.isfunction(found) or inspect.iscoroutinefunction(found):
        return False
    parameters = inspect.signature(found).parameters.values()
    return all(
        each.default is not each.empty or each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD} for each in parameters
    )


def _described(error: BaseException) -> str:
    """Name an error, and the last line of the application's that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<") and frame.filename != __file__]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"


@contextmanager
def guarded(deadline: float) -> Iterator[None]:
    """Run the application's code: what it prints goes to standard error, and `TimeoutError` ends it in time."""
    with _interruptible(deadline), redirect_stdout(sys.stderr):
        yield


@contextmanager
def _interruptible(deadline: float) -> Iterator[None]:
    """Let a deadline and Ctrl-C end what blocks the event loop, as an import may. Needs the main thread, and Unix."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number, handler in ((signal.SIGALRM, _too_long), (signal.SIGINT, signal.default_int_handler))
    }
    signal.setitimer(signal.ITIMER_REAL, deadline)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            _restore(number, handler)


def _restore(number: signal.Signals, handler: Callable[[int, FrameType | None], Any] | int | None) -> None:
    signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("it took longer than --timeout allows")
