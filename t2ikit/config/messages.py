"""Error messages of jsonargparse and of constructors, as one line that begins with the key."""

from __future__ import annotations

import re

from t2ikit.config.compose import nearest


def explain(message: str, key: str) -> str:
    """One line of what jsonargparse says about the arguments below ``key``."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if match := re.match(r'Parser key "([^"]+)":', lines[0]):
        key, lines = _below(key, match[1]), lines[1:]
    if match := re.match(r"the following arguments are required: (.+)", lines[0]):
        names = ", ".join(name.strip().removeprefix("it.") for name in match[1].split(","))
        return f"{key}: missing {names}"
    if match := re.match(r"(?:Group '([^']*)' does not accept option|Option) '([^']+)'", lines[0]):
        return f"{_below(key, match[1] or '')}: unknown key '{match[2]}'"
    if match := re.match(r"Not a valid subclass of (\w+)\. Got value: (.*)", lines[0]):
        return f"{key}: expected {{class_path: ..., init_args: ...}} of a {match[1]}, got {match[2]}"
    # Of the types that an Optional allows, the one that was parsed furthest gives the useful message.
    for index, line in enumerate(lines[1:], 1):
        line = line.removeprefix("- ")
        if line.startswith(("Parser key ", "Option ", "Group ", "Not a valid subclass")):
            return explain("\n".join([line, *lines[index + 1 :]]), key)
    lines = lines[: 1 + next((index for index, line in enumerate(lines) if "Got value: " in line), len(lines))]
    got = [value for line in lines for value in re.findall(r"(?:Got|Given) value: (.*)", line)]
    expected = [_type_name(kind) for line in lines for kind in re.findall(r"Expected (?:an? )?(.+?)(?:\. Got|$)", line)]
    if not expected:
        return f"{key}: {' '.join(lines)}"
    choices = re.findall(r"'([^']+)'", " ".join(expected))
    hint = nearest(got[-1], choices) if got and choices else ""
    wanted = " or ".join(dict.fromkeys(expected))
    return f"{key}: expected {wanted}, got {got[-1] if got else 'something else'}{hint}"


def _below(key: str, inner: str) -> str:
    inner = inner.removeprefix("it").removeprefix(".")
    return f"{key}.{inner}" if inner else key


def _type_name(kind: str) -> str:
    kind = re.sub(r"<class '([^']+)'>", lambda match: match[1].rpartition(".")[2], kind)
    kind = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", kind)
    return kind.replace("NoneType", "null")


def located(key: str, error: Exception) -> str:
    """The message with its key in front, unless it already begins with one."""
    message = str(error) or type(error).__name__
    return message if re.match(r"(model|data|trainer|callbacks)[.:]", message) else f"{key}: {message}"
