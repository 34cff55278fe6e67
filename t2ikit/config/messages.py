"""Error messages of jsonargparse and of constructors, as one line that begins with the key."""

from __future__ import annotations

import re

from t2ikit.config.errors import nearest


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
    # Of the types that an Optional allows, the one that was parsed furthest gives the useful message.
    for index, line in enumerate(lines[1:], 1):
        line = line.removeprefix("- ")
        if line.startswith(("Parser key ", "Option ", "Group ", "the following arguments are required")):
            return explain("\n".join([line, *lines[index + 1 :]]), key)
    return _class_expected(lines, key) or _type_expected(lines, key)


def _class_expected(lines: list[str], key: str) -> str | None:
    """What is said where an argument takes a class and another one, or none, was named; None elsewhere."""
    text = "\n".join(lines)
    if match := re.search(r"Expected an instantiatable class, but (\S+) is (abstract|a protocol)", text):
        return f"{key}: {match[1]} is {match[2]}: name a class that derives from it"
    if match := re.search(r"Import path (\S+ )?does not correspond to a subclass of \w+", text):
        # jsonargparse leaves the name out where the value is nothing but the name.
        given = (match[1] or text[match.end() :].partition("Given value: ")[2].partition("\n")[0]).strip()
        pattern = r"(?:does not correspond to a subclass of|Subclasses are disabled for) (\w+)"
        return f"{key}: {given} is no {' or '.join(dict.fromkeys(re.findall(pattern, text)))}"
    _, _, subtypes = next((line for line in lines if line.startswith("Subtypes: ")), "").partition(": ")
    classes = [*re.findall(r"Not a valid subclass of (\w+)", text), *re.findall(r"<class '[\w.]+\.(\w+)'>", subtypes)]
    values = re.findall(r"(?:Got|Given) value: (.*)", text)
    if not classes or not values:
        return None
    rest = [kind.replace("NoneType", "null") for kind in re.findall(r"<class '(\w+)'>", subtypes)]
    wanted = " or ".join(dict.fromkeys([*classes, *rest]))
    return f"{key}: expected {{class_path: ..., init_args: ...}} of a {wanted}, got {values[0]}"


def _type_expected(lines: list[str], key: str) -> str:
    """What is said where an argument takes plain values."""
    lines = lines[: 1 + next((index for index, line in enumerate(lines) if "Got value: " in line), len(lines))]
    got = [value for line in lines for value in re.findall(r"(?:Got|Given) value: (.*)", line)]
    expected = [_type_name(kind) for line in lines for kind in re.findall(r"Expected (?:an? )?(.+?)(?:\. Got|$)", line)]
    if not expected:
        return f"{key}: {' '.join(lines)}"
    choices = re.findall(r"'([^']+)'", " ".join(expected))
    hint = nearest(got[-1], choices) if got and choices else ""
    if any(kind.lower().startswith("list") for kind in expected) and got and not got[-1].startswith(("[", "{")):
        hint = f": write [{got[-1]}]"
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
