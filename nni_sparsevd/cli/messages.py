"""What the program says of a bad command line: one line, with the flag that was probably meant."""

import difflib
import re
from collections.abc import Mapping

from .command import Command

OPEN_ENDED = ("--model.arguments.", "--posterior.kl_weights.", "--posterior.estimators.")
"""Flags below these take any further name."""


def shorten(message: str) -> str:
    """Put the parser's account of a bad value on one line: the key, what it may be, what was found."""
    key = re.search(r'Parser key "([^"]+)"', message)
    if key is None:
        return message
    expectations = re.findall(r"Input should [^\[\n]+", message)
    for choices in re.findall(r"Expected a typing\.Literal\[(.+)\]", message):
        expectations.append(f"one of {choices}")
    if not expectations:
        return f"{key[1]}: {message.partition(chr(10))[2].strip()}"
    # a union of types says the same once a member; the order of the first mentions is kept
    expected = " or ".join(dict.fromkeys(text.strip().rstrip(",") for text in expectations))
    value = re.search(r"(?:Got value|Given value): (.+)", message)
    return f"{key[1]}: {expected}" + (f" (found {value[1].strip()!r})" if value else "")


def suggest(message: str, commands: Mapping[str, Command], typed: list[str]) -> str:
    """Add to `message` what was probably meant: the nearest command, or the nearest flag for each unknown flag.

    Args:
        message: What is wrong with the command line.
        commands: All commands, by name.
        typed: What the user typed after the name of the program.

    Returns:
        The message, with its suggestions after semicolons.
    """
    if not typed or typed[0].startswith("-"):
        return message
    if typed[0] not in commands:
        return "; ".join([message, *_did_you_mean(typed[0], list(commands))])
    known = re.findall(r"--[a-z][\w.]*", commands[typed[0]].parser([]).format_help())
    hints: list[str] = []
    for argument in typed[1:]:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in known and not flag.startswith(OPEN_ENDED):
            hints += _did_you_mean(flag, known)
    return "; ".join([message, *hints])


def _did_you_mean(unknown: str, known: list[str]) -> list[str]:
    return [f"did you mean {name}?" for name in difflib.get_close_matches(unknown, known, n=1)]
