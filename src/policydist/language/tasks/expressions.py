"""Arithmetic in model output, evaluated without ever running it.

Text is parsed with `ast` and walked; nothing is compiled, called or looked up. Length, nesting and the size of every
intermediate number are bounded before any work is done, so that hostile text costs microseconds.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator
from fractions import Fraction
from typing import NamedTuple

OPERATORS = frozenset("+-*/")
"""The operators of `evaluate_expression` unless told otherwise; ``"**"`` may be added."""

_SYMBOLS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}
_ALPHABET = frozenset("0123456789.+-*/() ")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "exp", "log", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh", "Abs"}
)


class ExpressionError(ValueError):
    """The text is not an allowed arithmetic expression, or it exceeds a bound; the text says which."""


def evaluate_expression(
    text: str,
    *,
    operators: Collection[str] = OPERATORS,
    max_length: int = 200,
    max_depth: int = 64,
    max_abs: int = 10**12,
) -> Fraction | int:
    """The exact value of an arithmetic expression: an int where it is whole, else a Fraction.

    Allowed are decimal numbers, parentheses, unary minus and plus, and ``operators`` (of ``+ - * / **``). A power needs
    a whole exponent. Numerator and denominator of every intermediate value stay within ``max_abs``; the size of a power
    is estimated before it is computed.

    Raises:
        ExpressionError: for anything else, naming the reason.
    """
    body = _parse(text, max_length)
    value = _Evaluator(body.source, frozenset(operators), max_depth, max_abs).value(body.tree, 1)
    return int(value) if value.denominator == 1 else value


def numbers_used(text: str, *, max_length: int = 200) -> list[Fraction | int]:
    """Every number written in the expression, from left to right, without signs: ``-(3 + 4) * 3`` gives ``[3, 4, 3]``.

    Raises:
        ExpressionError: when the text is not an arithmetic expression.
    """
    body = _parse(text, max_length)
    found: list[tuple[int, Fraction | int]] = []
    for node in ast.walk(body.tree):
        if isinstance(node, ast.Constant):
            value = _literal(node, body.source)
            found.append((node.col_offset, int(value) if value.denominator == 1 else value))
    return [value for _, value in sorted(found, key=lambda pair: pair[0])]


def is_literal(text: str, *, max_length: int = 4000, max_depth: int = 8) -> bool:
    """Whether the text is nothing but nested lists or tuples of numbers and strings."""

    def plain(node: ast.expr, depth: int) -> bool:
        if isinstance(node, ast.UnaryOp):
            return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)
        if isinstance(node, ast.List | ast.Tuple):
            return depth < max_depth and all(plain(item, depth + 1) for item in node.elts)
        return isinstance(node, ast.Constant) and isinstance(node.value, int | float | str)

    return _checked(text, max_length, lambda tree: plain(tree, 1))


def is_formula(text: str, *, max_length: int = 400, max_power: int = 100) -> bool:
    """Whether the text is a plain formula: numbers, one-letter names, ``+ - * / **``, elementary functions.

    Functions take one argument. Exponents must be written numbers, fractions of them, or single names, and nested
    exponents multiply to at most ``max_power``.
    """

    def plain(node: ast.expr, room: int) -> bool:
        match node:
            case ast.Constant(value=bool()):
                return False
            case ast.Constant(value=int() | float() as value):
                return abs(value) < 10**15
            case ast.Name(id=name):
                return len(name) == 1 and name.isascii()
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return plain(operand, room)
            case ast.BinOp(op=ast.Pow(), left=left, right=right):
                size = _exponent(right)
                return size is not None and size <= room and plain(left, int(room // max(size, 1)))
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
                return plain(left, room) and plain(right, room)
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
                return name in _FUNCTIONS and plain(argument, room)
        return False

    return _checked(text, max_length, lambda tree: plain(tree, max_power))


def _exponent(node: ast.expr) -> float | None:
    """The size of a literal exponent (``3``, ``-2``, ``1/2``, ``x`` counts as 1), or None if it is anything else."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return abs(value)
        case ast.Name():
            return 1.0
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _exponent(operand)
        case ast.BinOp(op=ast.Div() | ast.Mult(), left=left, right=right):
            sizes = _exponent(left), _exponent(right)
            return None if sizes[0] is None or sizes[1] is None else max(1.0, sizes[0]) * max(1.0, sizes[1])
    return None


def _checked(text: str, max_length: int, accept: Callable[[ast.expr], bool]) -> bool:
    """Parse bounded text as one expression and judge its tree; text that does not parse is not accepted."""
    if len(text) > max_length or not text.isascii() or not text.isprintable() or "__" in text:
        return False
    try:
        return accept(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


class _Parsed(NamedTuple):
    source: str
    tree: ast.expr


def _parse(text: str, max_length: int) -> _Parsed:
    """Parse text whose length and characters were checked first; numbers and operators cannot name anything."""
    if len(text) > max_length:
        raise ExpressionError(f"expression of {len(text)} characters; at most {max_length} are allowed")
    source = text.strip()
    if not source:
        raise ExpressionError("empty expression")
    strange = next(_foreign(source), None)
    if strange is not None:
        raise ExpressionError(f"character {strange!r} is not allowed in an expression")
    try:
        return _Parsed(source, ast.parse(source, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"not an expression: {source[:40]!r}") from error


def _foreign(source: str) -> Iterator[str]:
    return (letter for letter in source if letter not in _ALPHABET)


def _literal(node: ast.Constant, source: str) -> Fraction:
    """The number as written: a float constant is read from the text again, because 0.1 has no exact float."""
    return Fraction(source[node.col_offset : node.end_col_offset])


class _Evaluator:
    def __init__(self, source: str, operators: frozenset[str], max_depth: int, max_abs: int) -> None:
        self.source, self.operators, self.max_depth, self.max_abs = source, operators, max_depth, max_abs

    def value(self, node: ast.expr, depth: int) -> Fraction:
        if depth > self.max_depth:
            raise ExpressionError(f"expression nested deeper than {self.max_depth}")
        match node:
            case ast.Constant():
                return self.bounded(_literal(node, self.source))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand, depth + 1)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand, depth + 1)
            case ast.BinOp(left=left, op=op, right=right):
                symbol = _SYMBOLS.get(type(op))
                if symbol is None or symbol not in self.operators:
                    raise ExpressionError(f"operator {symbol or type(op).__name__} is not allowed")
                return self.bounded(self.apply(symbol, self.value(left, depth + 1), self.value(right, depth + 1)))
        raise ExpressionError(f"{type(node).__name__} is not allowed in an expression")

    def apply(self, symbol: str, left: Fraction, right: Fraction) -> Fraction:
        match symbol:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "**":
                return self.power(left, right)
        if right == 0:
            raise ExpressionError("division by zero")
        return left / right

    def power(self, base: Fraction, exponent: Fraction) -> Fraction:
        if exponent.denominator != 1:
            raise ExpressionError(f"exponent {exponent} is not whole")
        if base == 0 and exponent < 0:
            raise ExpressionError("division by zero")
        largest = max(abs(base.numerator), base.denominator)
        if largest > 1 and (largest.bit_length() - 1) * abs(int(exponent)) > self.max_abs.bit_length():
            raise ExpressionError(f"power exceeds {self.max_abs}")
        return Fraction(base ** int(exponent))

    def bounded(self, value: Fraction) -> Fraction:
        if abs(value.numerator) > self.max_abs or value.denominator > self.max_abs:
            raise ExpressionError(f"number exceeds {self.max_abs}")
        return value
