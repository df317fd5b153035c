"""Parse filter expressions into syntax trees, which are never executed.

The grammar is that of Python's comparisons, arithmetic and lists, so Python's parser is used. Column names are first
replaced by numbered names, so that they may be Python keywords or, in backticks, any text.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from recotransfer.errors import InputError

FUNCTIONS = ("contains", "has", "missing")
_KEYWORDS = {"and", "or", "not", "in", "True", "False", "None"}  # all other names may be columns
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|`(?P<quoted>[^`]*)`|(?P<number>\d[\w.]*)|(?P<name>[^\W\d]\w*)|.""",
    re.DOTALL,
)
_LONGEST = 200  # characters of an expression that are shown in a message


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: the expression as written.
        tree: the syntax tree, in which columns are `Name` nodes.
        names: numbered name in the tree -> column.
        starts: (start in the text that Python parsed, start in `text`) of each token, in ascending order.
    """

    text: str
    tree: ast.expr
    names: dict[str, str]
    starts: tuple[tuple[int, int], ...]

    def column(self, node: ast.Name) -> str:
        """The column that a name refers to."""
        return self.names.get(node.id, node.id)

    def piece(self, node: ast.AST) -> str:
        """The part of the text from which a node was parsed, for messages; the whole text if that is unknown."""
        first, last = getattr(node, "col_offset", None), getattr(node, "end_col_offset", None)
        if first is None or last is None or getattr(node, "lineno", 1) != 1 or not self.text.isascii():
            return shown(self.text)

        return shown(self.text[_place(self.starts, first) : _place(self.starts, last)].strip() or self.text)

    def refuse(self, what: str) -> NoReturn:
        """Raise an `InputError` that quotes the expression and says what is wrong with it."""
        raise InputError(f"filter {shown(self.text)!r}: {what}")


def shown(text: str) -> str:
    """The text, truncated for messages."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> Expression:
    """Parse an expression; results are cached.

    Raises:
        InputError: `text` is not a valid expression; the message says where.
    """
    if not isinstance(text, str):
        raise InputError(f"a filter is text such as 'price < 20', got {text!r}")

    code, names, starts = _with_plain_names(text)
    try:
        tree = ast.parse(code, mode="eval").body
    except SyntaxError as cause:
        _refuse(text, _place(starts, cause.offset - 1) if cause.offset else len(text))
    except ValueError:
        _refuse(text, 0)
    except (RecursionError, MemoryError):
        raise too_deep(text) from None

    return Expression(text, tree, names, tuple(starts))


def too_deep(text: str) -> InputError:
    """The error for an expression that is nested too deeply to be parsed or evaluated."""
    return InputError(f"filter {shown(text)!r} is nested too deeply; use fewer parentheses and operators")


def _with_plain_names(text: str) -> tuple[str, dict[str, str], list[tuple[int, int]]]:
    """The text with numbered column names, numbered name -> column, and the start of each token in both texts."""
    code, numbers, starts, length = [], dict[str, str](), [(0, 0)], 0
    blank = len(text) - len(text.lstrip())

    for token in _TOKEN.finditer(text, blank):
        name, piece = token["quoted"], token[0]
        if piece == "`":
            raise InputError(f"filter {shown(text)!r} is not a valid expression: a backtick is not closed")
        if name == "":
            raise InputError(f"filter {shown(text)!r} is not a valid expression: no name between the backticks")
        if name is None and token["name"] and _is_column(text, token):
            name = piece

        if name is not None:
            piece = numbers.setdefault(name, f"n{len(numbers)}")

        starts.append((length, token.start()))
        code.append(piece)
        length += len(piece)

    starts.append((length, len(text)))
    return "".join(code), {number: name for name, number in numbers.items()}, starts


def _is_column(text: str, token: re.Match[str]) -> bool:
    """Whether a name is a column: not a keyword, function, option, attribute or string prefix."""
    after = text[token.end() : token.end() + 50]
    before = text[: token.start()].rstrip()[-1:]
    return not (token[0] in _KEYWORDS or before == "." or re.match(r"""\s*\(|\s*=(?!=)|["']""", after))


def _place(starts: Sequence[tuple[int, int]], at: int) -> int:
    """The position in the original text of character `at` of the numbered text."""
    code, text = max(start for start in starts if start[0] <= at)
    return text + at - code


def _refuse(text: str, at: int) -> NoReturn:
    """Raise the error for a text that cannot be parsed from character `at` on."""
    rest = text[at:].strip()
    where = f"it cannot be read from {rest[:40]!r} on" if rest else "something is missing at its end"
    if re.search(r"[^=!<>]=[^=]", text):
        where = "values are compared by ==, not by ="

    raise InputError(
        f"filter {shown(text)!r} is not a valid expression: {where}; write for example: price < 20 "
        "(names with spaces or dashes go in backticks: `Unit Price` < 20)"
    )
