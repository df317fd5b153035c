"""Which items may be recommended: allow and deny lists and a boolean expression over item columns.

The expression is parsed, never executed: columns, constants, comparisons, `in`, arithmetic, `and`, `or`, `not` are all
it knows.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recotransfer.data import IdMap
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
            A comparison with a missing value is false.
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
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError) as cause:
        raise InputError(f"filter {expression!r} is no expression ({cause}); write for example: price < 20") from None
    try:
        value = _Evaluator(expression, columns).visit(tree.body)
    except TypeError as cause:
        raise InputError(f"filter {expression!r} compares values of different types ({cause})") from None
    return _truth(value, len(columns), expression)


def _truth(value: Any, n: int, expression: str) -> NDArray[np.bool_]:
    if isinstance(value, (bool, np.bool_)):
        return np.full(n, bool(value))
    if not isinstance(value, pd.Series):
        raise InputError(f"filter {expression!r} must give true or false for each item; {value!r} does not")
    known = value.dropna()
    if not (pd.api.types.is_bool_dtype(value.dtype) or known.map(lambda v: isinstance(v, (bool, np.bool_))).all()):
        raise InputError(
            f"filter {expression!r} must give true or false for each item; compare {value.name!r} with a value"
        )
    return np.asarray(value.fillna(False).astype(bool))


class _Evaluator(ast.NodeVisitor):
    def __init__(self, expression: str, columns: pd.DataFrame) -> None:
        self.expression, self.columns = expression, columns

    def generic_visit(self, node: ast.AST) -> Any:
        raise InputError(
            f"filter {self.expression!r}: {type(node).__name__} is not allowed; use columns, values, comparisons, "
            "in, and, or, not, + - * /"
        )

    def visit_Name(self, node: ast.Name) -> Any:
        if node.id not in self.columns:
            raise InputError(
                f"filter {self.expression!r}: no column {node.id!r}; the items have {list(self.columns)} "
                '(text values need quotes, as in category == "mug")'
            )
        return self.columns[node.id]

    def visit_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def visit_List(self, node: ast.List | ast.Tuple) -> list[Any]:
        return [self.visit(element) for element in node.elts]

    visit_Tuple = visit_List

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        parts = [_truth(self.visit(v), len(self.columns), self.expression) for v in node.values]
        join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return pd.Series(join.reduce(parts), index=self.columns.index)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return pd.Series(~_truth(value, len(self.columns), self.expression), index=self.columns.index)
        return -value if isinstance(node.op, ast.USub) else self.generic_visit(node.op)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        work = _ARITHMETIC.get(type(node.op))
        return work(self.visit(node.left), self.visit(node.right)) if work else self.generic_visit(node.op)

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
            held = left.isin(right) if isinstance(op, ast.In) else ~left.isin(right) & left.notna()
            return np.asarray(held)
        work = _COMPARE.get(type(op))
        value = work(left, right) if work else self.generic_visit(op)
        if not isinstance(value, pd.Series):
            return np.full(len(self.columns), bool(value))
        present = np.ones(len(self.columns), bool)
        for side in (left, right):
            if isinstance(side, pd.Series):
                present &= side.notna().to_numpy()
        return np.asarray(value.fillna(False).astype(bool)) & present
