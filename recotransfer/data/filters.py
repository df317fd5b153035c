"""Filters on the items that may be recommended: allow and deny lists, and a boolean expression over item columns.

The expression is parsed and never executed as code. It may contain columns, constants, comparisons, `in`, arithmetic,
`and`, `or`, `not` and three functions.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import infer_dtype, is_datetime64_any_dtype, is_numeric_dtype

from recotransfer.arguments import checked_class
from recotransfer.data.expressions import FUNCTIONS, Expression, parsed, shown, too_deep
from recotransfer.data.ids import IdMap
from recotransfer.errors import InputError

Constant: TypeAlias = str | bool | int | float | pd.Timestamp
Value: TypeAlias = pd.Series | Constant | list[Constant]
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_LISTS = (list, tuple, set, frozenset, np.ndarray)


@checked_class
@dataclass(frozen=True)
class Filter:
    """The items that may be recommended; by default all.

    Attributes:
        allow: recommend only these ids; None allows all.
        deny: never recommend these ids.
        where: recommend only items for which this expression over item columns is true, such as
            `price < 20 and category in ("mug", "plate") and in_stock`; see `evaluate` for what it may contain.
    """

    allow: Sequence[Any] | NDArray[Any] | None = None
    deny: Sequence[Any] | NDArray[Any] = ()
    where: str | None = None

    def mask(self, ids: IdMap, columns: pd.DataFrame | None) -> NDArray[np.bool_]:
        """(len(ids),) bool, True for items that may be recommended.

        Args:
            ids: the catalogue.
            columns: its item columns, one row per id, from `filter_columns`; None if there are none.

        Raises:
            UnknownIdError: `allow` or `deny` has an id that is not in `ids`.
            InputError: `where` is not valid for these columns, or there are no columns.
        """
        out = np.ones(len(ids), bool)
        if self.allow is not None:
            out[:] = False
            out[ids.positions(self.allow)] = True

        if len(self.deny):
            out[ids.positions(self.deny)] = False

        if self.where is not None:
            if columns is None:
                raise InputError(f"filter {self.where!r} needs item columns; fit with the items table or attach it")

            out &= evaluate(self.where, columns)

        return out


def evaluate(expression: str, columns: pd.DataFrame) -> NDArray[np.bool_]:
    """(len(columns),) bool, True for the rows of `columns` for which `expression` is true.

    >>> items = pd.DataFrame({
    ...     "title": ["Green tea", "Teapot", None], "Unit Price": [4, 30, 12], "class": ["food", "kitchen", "food"],
    ...     "tags": ["vegan|organic", "gift", None], "added": pd.to_datetime(["2025-01-01", "2025-09-01", None]),
    ... })
    >>> def rows(expression):
    ...     return np.flatnonzero(evaluate(expression, items)).tolist()

    Numbers, quoted text and dates written as text are compared by < <= > >= == !=. Numbers are calculated by + - * /,
    and conditions are combined by and, or, not. A boolean column is a condition by itself. Column names with spaces,
    dashes or other special characters are put in backticks:

    >>> rows('`Unit Price` < 20 and class == "food"')
    [0, 2]
    >>> rows('added >= "2025-08-31"')
    [1]

    Comparisons of text are case-sensitive. `contains` and `in` search for a substring; `case=False` ignores case:

    >>> rows('contains(title, "tea")'), rows('"tea" in title'), rows('contains(title, "tea", case=False)')
    ([0], [0], [0, 1])

    `in` and `not in` test for one of several values. `has` tests whether an item has a value among several: in cells
    that are lists, or text such as "vegan|organic":

    >>> rows('class in ("kitchen", "garden")'), rows('class not in ("kitchen", "garden")'), rows('has(tags, "vegan")')
    ([1], [0, 2], [0])

    Every comparison with a missing cell is false, including != and `not in`; only `not` and `missing` keep such rows:

    >>> rows('title != "Teapot"'), rows('not title == "Teapot"'), rows('missing(title)')
    ([0], [0, 2], [2])

    Dates without a time zone are in that of the column. A column of text is compared as numbers if all its cells are
    numbers such as "19.90".

    Raises:
        InputError: the expression is not valid, names an unknown column, or compares values of different types.
    """
    syntax = parsed(expression)
    try:
        evaluator = _Evaluator(syntax, columns)
        return evaluator.truth(evaluator.visit(syntax.tree), syntax.tree)
    except TypeError as cause:
        raise InputError(f"filter {shown(expression)!r} compares values of different types ({cause})") from None
    except ArithmeticError as cause:
        raise InputError(f"filter {shown(expression)!r} cannot be calculated ({cause})") from None
    except RecursionError:
        raise too_deep(expression) from None


class _Evaluator(ast.NodeVisitor):
    """Evaluates a syntax tree, whose values are columns (Series), constants, and lists of constants after `in`.

    Nodes without a method of their own are rejected, so nothing but the listed syntax can be evaluated.
    """

    def __init__(self, expression: Expression, columns: pd.DataFrame) -> None:
        self.expression = expression
        self.columns = columns

    def truth(self, value: Value, node: ast.AST) -> NDArray[np.bool_]:
        """(rows,) bool from a boolean constant or column; missing cells are False."""
        if isinstance(value, (bool, np.bool_)):
            return np.full(len(self.columns), bool(value))

        present = value.dropna() if isinstance(value, pd.Series) else None
        if present is None or not (
            present.dtype == bool or present.map(lambda v: isinstance(v, (bool, np.bool_))).all()
        ):
            self.expression.refuse(
                f"it must give true or false for each item; {self.expression.piece(node)} alone does not, compare it"
            )

        assert isinstance(value, pd.Series)
        return np.asarray(value.fillna(False).astype(bool))

    def _flags(self, flags: object) -> pd.Series:
        """A boolean column from an array of truth values."""
        return pd.Series(np.asarray(flags, bool), index=self.columns.index)

    def generic_visit(self, node: ast.AST) -> NoReturn:
        self._not_allowed(node, node)

    def _not_allowed(self, node: ast.AST, around: ast.AST) -> NoReturn:
        word = {ast.BitAnd: "write and for &", ast.BitOr: "write or for |", ast.Invert: "write not for ~"}.get(
            type(node)
        )
        self.expression.refuse(
            f"{self.expression.piece(around)} is not allowed ({word or type(node).__name__}); use columns, values, "
            f"comparisons, in, and, or, not, + - * /, {', '.join(FUNCTIONS)}"
        )

    def visit_Name(self, node: ast.Name) -> pd.Series:
        name = self.expression.column(node)
        match = next((column for column in self.columns if column == name or str(column) == name), None)
        if match is None:
            near = next((c for c in self.columns if f"{c}" in self.expression.text and not f"{c}".isidentifier()), None)
            self.expression.refuse(
                f"no column {name!r}; the items have {list(self.columns)} "
                + (
                    f"(put {near} in backticks: `{near}`)"
                    if near
                    else '(text values need quotes, as in category == "mug")'
                )
            )

        return _inferred(self.columns[match])

    def visit_Constant(self, node: ast.Constant) -> Constant:
        if not isinstance(node.value, (str, int, float)):
            self.expression.refuse(
                f"{node.value!r} cannot be compared; use text, numbers, True or False "
                "(no comparison holds for a missing value: missing(column) finds them)"
            )

        return node.value

    def visit_List(self, node: ast.List | ast.Tuple) -> list[Constant]:
        values = [self.visit(element) for element in node.elts]
        if any(isinstance(value, (pd.Series, list)) for value in values):
            self.expression.refuse(f"the list {self.expression.piece(node)} may hold values only")

        return values

    visit_Tuple = visit_List

    def visit_BoolOp(self, node: ast.BoolOp) -> pd.Series:
        operands = [self.truth(self.visit(v), v) for v in node.values]
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return self._flags(combine.reduce(operands))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return self._flags(~self.truth(self.visit(node.operand), node.operand))
        if not isinstance(node.op, ast.USub):
            self._not_allowed(node.op, node)

        negative: Value = -self._number(node.operand)
        return negative

    def visit_BinOp(self, node: ast.BinOp) -> Value:
        operation = _ARITHMETIC.get(type(node.op))
        if operation is None:
            self._not_allowed(node.op, node)

        result: Value = operation(self._number(node.left), self._number(node.right))
        return result

    def _number(self, node: ast.expr) -> Any:
        """The value in floating point, because integers could overflow and * would repeat text."""
        value: Value = _as_numbers(self.visit(node))
        if _kind(value) != "numbers":
            self.expression.refuse(f"+ - * / need numbers on both sides, {self.expression.piece(node)} is not one")

        return value.astype("float64") if isinstance(value, pd.Series) else float(cast(float, value))

    # -- functions -----------------------------------------------------------------------------------------------------

    def visit_Call(self, node: ast.Call) -> pd.Series:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS:
            self.expression.refuse(
                f"{self.expression.piece(node.func)}(...) is not allowed; the functions are {', '.join(FUNCTIONS)}"
            )

        wanted = 1 if name == "missing" else 2
        options = {word.arg: word.value for word in node.keywords}
        case = options.pop("case", None) if name == "contains" else None
        if len(node.args) != wanted or options or not (case is None or isinstance(getattr(case, "value", 0), bool)):
            self.expression.refuse(
                f'{self.expression.piece(node)} is not understood; write contains(title, "tea"), '
                'contains(title, "tea", case=False), has(tags, "vegan") or missing(price)'
            )

        column = self.visit(node.args[0])
        if not isinstance(column, pd.Series):
            self.expression.refuse(f"{name} needs a column first, {self.expression.piece(node.args[0])} is not one")
        if name == "missing":
            return self._flags(column.isna())

        value = self.visit(node.args[1])
        if isinstance(value, (pd.Series, list)):
            self.expression.refuse(f"{name} looks for one value, {self.expression.piece(node.args[1])} is not one")
        if name == "has":
            return self._flags(self._has(column, value))

        return self._flags(self._contains(column, value, case is None or bool(getattr(case, "value", True))))

    def _contains(self, column: pd.Series, value: Constant, case: bool) -> NDArray[np.bool_]:
        if not isinstance(value, str) or _kind(column) not in ("text", ""):
            self.expression.refuse(f"only text contains text; {column.name!r} holds {_kind(column) or 'other values'}")

        piece = value if case else value.casefold()
        return np.array([isinstance(v, str) and piece in (v if case else v.casefold()) for v in column], bool)

    def _has(self, column: pd.Series, value: Constant) -> NDArray[np.bool_]:
        if _kind(column) not in ("text", "lists", ""):
            self.expression.refuse(f"has looks into lists and text; {column.name!r} holds {_kind(column)}")

        return np.array([value in _values_in(cell) for cell in column], bool)

    # -- comparisons ---------------------------------------------------------------------------------------------------

    def visit_Compare(self, node: ast.Compare) -> pd.Series:
        out = np.ones(len(self.columns), bool)
        left = self.visit(node.left)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.visit(comparator)
            out &= self._compare(op, left, right)
            left = right

        return self._flags(out)

    def _compare(self, op: ast.cmpop, left: Value, right: Value) -> NDArray[np.bool_]:
        if isinstance(op, (ast.In, ast.NotIn)):
            return self._membership(left, right, negated=isinstance(op, ast.NotIn))
        if isinstance(left, list) or isinstance(right, list):
            self.expression.refuse("a list is only allowed after `in`")

        left, right = self._alike(left, right)
        operation = _COMPARE.get(type(op))
        value = operation(left, right) if operation else self.generic_visit(op)
        if not isinstance(value, pd.Series):
            return np.full(len(self.columns), bool(value))

        # No comparison holds for a missing cell, not even !=.
        present = np.ones(len(self.columns), bool)
        for side in (left, right):
            if isinstance(side, pd.Series):
                present &= side.notna().to_numpy()

        return np.asarray(value.fillna(False).astype(bool)) & present

    def _membership(self, left: Value, right: Value, *, negated: bool) -> NDArray[np.bool_]:
        if isinstance(left, pd.Series) and isinstance(right, list):
            column, pairs = left, [self._alike(left, value) for value in right]
            found = left.isin([value for side, value in pairs if side is left])
            if numbers := [value for side, value in pairs if side is not left]:
                found |= cast(pd.Series, _as_numbers(left)).isin(numbers)
        elif isinstance(right, pd.Series) and not isinstance(left, (pd.Series, list)):
            column = right
            found = self._flags(
                self._has(right, left) if _kind(right) == "lists" else self._contains(right, left, case=True)
            )
        else:
            self.expression.refuse(
                'a list is needed after `in`, as in category in ("mug", "cup"), or ("mug",) for one value; '
                'or a text before it, as in "tea" in title'
            )

        return np.asarray((found != negated) & column.notna(), bool)

    def _alike(self, left: Value, right: Value) -> tuple[Value, Value]:
        """Both sides of one kind: text is converted to dates or numbers; raises for kinds that cannot be compared."""
        kinds = _kind(left), _kind(right)
        if kinds == ("dates", "text") and isinstance(left, pd.Series) and isinstance(right, str):
            return left, self._date(right, left)
        if kinds == ("text", "dates") and isinstance(right, pd.Series) and isinstance(left, str):
            return self._date(left, right), right
        if "lists" in kinds:
            self.expression.refuse('lists are not compared; write has(tags, "vegan") for one of their values')
        if kinds[0] != kinds[1] and "" not in kinds:
            numbers = _as_numbers(left), _as_numbers(right)
            if set(kinds) == {"text", "numbers"} and _kind(numbers[0]) == _kind(numbers[1]):
                return numbers

            raise InputError(
                f"filter {shown(self.expression.text)!r} compares values of different types ({kinds[0]} with "
                f'{kinds[1]}); text needs quotes, numbers need none, dates are written "2025-08-31"'
            )

        return left, right

    def _date(self, text: str, column: pd.Series) -> pd.Timestamp:
        """The time that `text` gives, in the time zone of `column` if it names none."""
        try:
            moment, zone = pd.Timestamp(datetime.fromisoformat(text)), column.dt.tz
        except ValueError:
            self.expression.refuse(f'{text!r} is not a date; write "2025-08-31" or "2025-08-31T18:00"')

        if moment.tz is None:
            return moment.tz_localize(zone)

        return moment if zone is not None else moment.tz_convert("UTC").tz_localize(None)


def _values_in(cell: object) -> list[Any]:
    """The values in a cell: those of a list, or of text such as "a|b|c"."""
    if isinstance(cell, str):
        return [value.strip() for value in cell.split("|")]

    return list(cell) if isinstance(cell, _LISTS) else []


def _inferred(column: pd.Series) -> pd.Series:
    """The column without categories, and as dates or numbers if all its objects are."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)

    if column.dtype == object:
        kind = infer_dtype(column, skipna=True)
        if kind in ("date", "datetime", "datetime64"):
            zones = {getattr(v, "tzinfo", None) for v in column.dropna()}
            return pd.to_datetime(column, utc=len(zones) > 1)
        if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
            return pd.to_numeric(column)

    return column


def _as_numbers(value: Value) -> Value:
    """A column of text as numbers if all its cells are numbers such as "19.90"; any other value unchanged."""
    if not isinstance(value, pd.Series) or not value.notna().any():
        return value

    try:
        return pd.to_numeric(value)
    except (ValueError, TypeError):
        return value


def _kind(value: Value) -> str:
    """The kind of a column or constant: "text", "numbers" (including booleans), "dates", "lists", or "" for others."""
    if not isinstance(value, pd.Series):
        return {str: "text", bool: "numbers", int: "numbers", float: "numbers"}.get(type(value), "")
    if is_numeric_dtype(value.dtype):
        return "numbers"
    if is_datetime64_any_dtype(value.dtype):
        return "dates"
    if value.dtype == object and any(isinstance(cell, _LISTS) for cell in value):
        return "lists"

    kind = "string" if isinstance(value.dtype, pd.StringDtype) else infer_dtype(value, skipna=True)

    return {"string": "text", "boolean": "numbers"}.get(kind, "")
