"""Which items may be recommended: allow and deny lists and a boolean expression over item columns.

The expression is parsed, never executed: columns, constants, comparisons, `in`, arithmetic, `and`, `or`, `not` are all
it knows.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import infer_dtype, is_datetime64_any_dtype, is_numeric_dtype

from recotransfer.data.ids import IdMap
from recotransfer.errors import InputError

_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """Items that may stand in a list; what is not mentioned is allowed.

    Attributes:
        allow: only these ids, when given.
        deny: never these ids.
        where: an expression over item columns, such as `price < 20 and category in ("mug", "plate") and in_stock`.
            A comparison with a missing value is false. Columns of dates compare with text such as "2025-08-31".
    """

    allow: Sequence[Any] | NDArray[Any] | None = None
    deny: Sequence[Any] | NDArray[Any] = ()
    where: str | None = None

    def mask(self, ids: IdMap, columns: pd.DataFrame | None) -> NDArray[np.bool_]:
        """(n,) bool over `ids`; unknown ids and columns are named in the error."""
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
    """(n,) bool: where `expression` holds over the rows of `columns`."""
    shown = expression if len(expression) <= 200 else f"{expression[:200]}..."
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError) as cause:
        raise InputError(f"filter {shown!r} is no expression ({cause}); write for example: price < 20") from None
    except (RecursionError, MemoryError):
        raise InputError(f"filter {shown!r} is nested too deeply; write it in fewer steps") from None

    try:
        evaluator = _Evaluator(shown, columns)
        return evaluator.truth(evaluator.visit(tree.body))
    except TypeError as cause:
        raise InputError(f"filter {shown!r} compares values of different types ({cause})") from None
    except ArithmeticError as cause:
        raise InputError(f"filter {shown!r} cannot be worked out ({cause})") from None
    except RecursionError:
        raise InputError(f"filter {shown!r} is nested too deeply; write it in fewer steps") from None


class _Evaluator(ast.NodeVisitor):
    """Values are columns (Series), constants, and lists of constants on the right of `in`."""

    def __init__(self, expression: str, columns: pd.DataFrame) -> None:
        self.expression = expression
        self.columns = columns

    def truth(self, value: Any) -> NDArray[np.bool_]:
        """(n,) bool of a value that is true or false for each item; missing is false."""
        if isinstance(value, (bool, np.bool_)):
            return np.full(len(self.columns), bool(value))

        known = value.dropna() if isinstance(value, pd.Series) else None
        if known is None or not (known.dtype == bool or known.map(lambda v: isinstance(v, (bool, np.bool_))).all()):
            what = repr(value) if known is None else f"column {value.name!r}" if value.name else "arithmetic"
            raise InputError(
                f"filter {self.expression!r} must give true or false for each item; {what} alone does not, compare it"
            )

        return np.asarray(value.fillna(False).astype(bool))

    def generic_visit(self, node: ast.AST) -> Any:
        raise InputError(
            f"filter {self.expression!r}: {type(node).__name__} is not allowed; use columns, values, comparisons, "
            "in, and, or, not, + - * /"
        )

    def visit_Name(self, node: ast.Name) -> pd.Series:
        if node.id not in self.columns:
            raise InputError(
                f"filter {self.expression!r}: no column {node.id!r}; the items have {list(self.columns)} "
                '(text values need quotes, as in category == "mug")'
            )

        return _settled(self.columns[node.id])

    def visit_Constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, (str, int, float)):
            raise InputError(
                f"filter {self.expression!r}: {node.value!r} cannot be compared; use text, numbers, True or False "
                "(no comparison holds for a missing value)"
            )

        return node.value

    def visit_List(self, node: ast.List | ast.Tuple) -> list[Any]:
        values = [self.visit(element) for element in node.elts]
        if any(isinstance(value, (pd.Series, list)) for value in values):
            raise InputError(f"filter {self.expression!r}: a list may hold values only")

        return values

    visit_Tuple = visit_List

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        parts = [self.truth(self.visit(v)) for v in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return pd.Series(join.reduce(parts), index=self.columns.index)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return pd.Series(~self.truth(value), index=self.columns.index)

        return -self._number(value) if isinstance(node.op, ast.USub) else self.generic_visit(node.op)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        work = _ARITHMETIC.get(type(node.op))
        if work is None:
            return self.generic_visit(node.op)

        return work(self._number(self.visit(node.left)), self._number(self.visit(node.right)))

    def _number(self, value: Any) -> Any:
        """The value as floating point, which neither wraps around nor repeats text."""
        if _kind(value) != "numbers":
            raise InputError(f"filter {self.expression!r}: + - * / want numbers on both sides")

        return value.astype("float64") if isinstance(value, pd.Series) else float(value)

    def visit_Compare(self, node: ast.Compare) -> Any:
        out = np.ones(len(self.columns), bool)
        left = self.visit(node.left)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.visit(comparator)
            out &= self._compare(op, left, right)
            left = right

        return pd.Series(out, index=self.columns.index)

    def _compare(self, op: ast.cmpop, left: Any, right: Any) -> NDArray[np.bool_]:
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(left, pd.Series) or not isinstance(right, list):
                raise InputError(f'filter {self.expression!r}: write column in ("a", "b")')

            held = left.isin([self._alike(left, value)[1] for value in right])
            return np.asarray((held if isinstance(op, ast.In) else ~held) & left.notna(), bool)

        if isinstance(left, list) or isinstance(right, list):
            raise InputError(f"filter {self.expression!r}: a list stands on the right of in only")

        left, right = self._alike(left, right)
        work = _COMPARE.get(type(op))
        value = work(left, right) if work else self.generic_visit(op)
        if not isinstance(value, pd.Series):
            return np.full(len(self.columns), bool(value))

        present = np.ones(len(self.columns), bool)
        for side in (left, right):
            if isinstance(side, pd.Series):
                present &= side.notna().to_numpy()

        return np.asarray(value.fillna(False).astype(bool)) & present

    def _alike(self, left: Any, right: Any) -> tuple[Any, Any]:
        """Both sides, text beside dates turned into a date; unlike kinds are refused, as nothing would ever match."""
        kinds = _kind(left), _kind(right)
        if kinds == ("dates", "text") and isinstance(right, str):
            return left, self._date(right, left)
        if kinds == ("text", "dates") and isinstance(left, str):
            return self._date(left, right), right
        if kinds[0] != kinds[1] and "" not in kinds:
            raise InputError(
                f"filter {self.expression!r} compares values of different types ({kinds[0]} with {kinds[1]}); text "
                'needs quotes, numbers need none, dates are written "2025-08-31"'
            )

        return left, right

    def _date(self, text: str, column: pd.Series) -> pd.Timestamp:
        """The moment `text` names, in the zone of `column` where it names none of its own."""
        try:
            moment, zone = pd.Timestamp(datetime.fromisoformat(text)), column.dt.tz
        except ValueError:
            raise InputError(
                f'filter {self.expression!r}: {text!r} is no date; write "2025-08-31" or "2025-08-31T18:00"'
            ) from None

        if moment.tz is None:
            return moment.tz_localize(zone)

        return moment if zone is not None else moment.tz_convert("UTC").tz_localize(None)


def _settled(column: pd.Series) -> pd.Series:
    """Categories as their values, and objects that are all dates or all numbers as such."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)

    if column.dtype == object:
        kind = infer_dtype(column, skipna=True)
        if kind in ("date", "datetime", "datetime64"):
            return pd.to_datetime(column)
        if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
            return pd.to_numeric(column)

    return column


def _kind(value: Any) -> str:
    """What a column or constant holds: "text", "numbers" (truth values are), "dates", or nothing known."""
    if not isinstance(value, pd.Series):
        return {str: "text", bool: "numbers", int: "numbers", float: "numbers"}.get(type(value), "")
    if is_numeric_dtype(value.dtype):
        return "numbers"
    if is_datetime64_any_dtype(value.dtype):
        return "dates"

    kind = "string" if isinstance(value.dtype, pd.StringDtype) else infer_dtype(value, skipna=True)

    return {"string": "text", "boolean": "numbers"}.get(kind, "")
