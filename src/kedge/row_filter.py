"""Row filter: the SQL condition by which a user chooses pictures, made safe for Lance, and what is wrong with one."""

import re
from collections.abc import Sequence
from itertools import accumulate

from kedge.errors import InputError, nearest_name

__all__ = ["filter_error", "whole_condition"]

_TEXT = re.compile(r"'[^']*'|\"[^\"]*\"")
_PARSED = re.compile(r"sql parser error: (.*)\)")
_UNKNOWN = re.compile(r"No field named (\S+?)\.?(?=\s|$)")
# What Lance takes for a value to come, and waits for.
_OPEN = re.compile(r"[?$]")
_OF_SEVERAL = "logical expression"
_OUR_BRACKET = "Expected: ), found"


def whole_condition(where: str, columns: Sequence[str]) -> str:
    """Return a condition in brackets: Lance takes one as far as it is whole, and leaves what follows.

    In brackets that is an error. Raises InputError for an empty condition, for one that would get out of them,
    and for a column in double quotes: Lance would compare the word itself, and match nothing.
    """
    if not where.strip():
        raise InputError("the filter is empty: give a condition such as \"label = 'cat'\", or leave it out")
    bare = _TEXT.sub("", where)
    depths = [0, *accumulate({"(": 1, ")": -1}.get(sign, 0) for sign in bare)]
    if min(depths) < 0 or depths[-1] or "'" in bare or '"' in bare:
        raise InputError(f'the filter "{where}" cannot be used: not every bracket and quote has its other half')
    if _OPEN.search(bare):
        raise InputError(f'the filter "{where}" cannot be used: ? and $ stand for nothing here, write the value itself')
    quoted = {text[1:-1] for text in _TEXT.findall(where) if text[0] == '"'} & {*columns}
    if quoted:
        name = min(quoted)
        raise InputError(f"\"{name}\" in double quotes is a text, not the column: write {name} or '{name}'")
    return f"({where})"


def filter_error(where: str, reason: str, columns: Sequence[str]) -> InputError:
    """Return what to say of a condition that Lance refuses for that reason; the nearest column to an unknown one."""
    there = ", ".join(columns)
    unknown = _UNKNOWN.search(reason)
    if unknown:
        name = unknown.group(1).strip('"')
        near = nearest_name(name, columns)
        return InputError(
            f"no column '{name}'{near}; there are: {there}. A text is put in quotes, such as label = 'cat'"
        )
    parsed = _PARSED.search(reason)
    if _OF_SEVERAL in reason:
        reason = "it takes several pictures together, as sum() and count() do, and a filter one at a time"
    elif parsed:
        reason = parsed.group(1).replace(_OUR_BRACKET, "expected its end, `and` or `or`, found")
    return InputError(
        f"the filter \"{where}\" cannot be used ({reason}): texts are put in quotes, such as label = 'cat', and "
        f"numbers are not; columns are: {there}"
    )
