"""What pack.py and export_onnx.py take from the user's own Python: MODULE:NAME, and a call's arguments as text."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys


def find(spec: str) -> object:
    """The object of MODULE:NAME (as on the command line: from the current folder too) or FILE.py:NAME.

    Raises ValueError, in one line. Errors inside the user's module are the user's to see and pass through.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise ValueError(f"{spec}: expected MODULE:NAME or FILE.py:NAME")
    if module_name.endswith(".py"):
        if not os.path.isfile(module_name):
            raise ValueError(f"{module_name}: no such file")
        sys.path.insert(0, os.path.dirname(os.path.abspath(module_name)))
        module_name = os.path.splitext(os.path.basename(module_name))[0]
    else:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise ValueError(f"{spec}: no module {error.name} on Python's path; run this where it lies") from error
        raise ValueError(f"{spec}: needs {error.name}, which this Python ({sys.executable}) lacks") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{spec}: {found.__name__ if hasattr(found, '__name__') else found} has no {part}")
        found = getattr(found, part)
    return found


def arguments(text: str) -> tuple[list[object], dict[str, object]]:
    """The positional and keyword arguments of "1, num_classes=10"; literals only, nothing is executed."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or any(word.arg is None for word in call.keywords):
            raise ValueError
        return ([ast.literal_eval(value) for value in call.args],
                {str(word.arg): ast.literal_eval(word.value) for word in call.keywords})
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"--args {text!r}: expected literals as in a call, \"1, root='data'\"") from error
