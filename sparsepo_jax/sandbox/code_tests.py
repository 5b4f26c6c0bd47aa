"""From an answer to the program that tests it, and from passes to pass@k.

    HumanEval   prompt                     MBPP   answer
                answer (goes on)                  test_setup_code, test_imports
                test                              test_list
                check(entry_point)

HumanEval: Chen et al. 2021, 2107.03374. MBPP: Austin et al. 2021, 2108.07732, in both shapes (the full set,
and the sanitized one, whose tests have imports of their own).
"""

import ast
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

from sparsepo_jax.core.errors import UserError


def program_of(row: dict[str, Any], prompt: str, completion: str) -> str:
    """The program that runs to its end if and only if the answer passes.

    An answer may be a fenced block (```), also with words around it. A HumanEval answer goes on where the
    prompt ends, unless it holds the function from its head (fenced, or after a prompt without its head: a
    chat). Then the prompt is put before it only if it is Python, since it may have imports and functions to
    build on.

    Args:
        row: the columns of the problem.
        prompt: as the model read it.
        completion: what it answered.

    Raises:
        UserError: the row has no tests.
    """
    if isinstance(row.get("test"), str) and isinstance(row.get("entry_point"), str):
        entry = row["entry_point"]
        prompt = _unix(prompt)
        code, is_fenced = _code_in(_unix(completion))
        head = re.compile(rf"^(async )?def {re.escape(entry)}\b", re.MULTILINE)
        before = prompt
        if head.search(code) and (is_fenced or not head.search(prompt)):
            before = prompt + "\n" if _is_python(prompt) else ""
        return f"{before}{code}\n{_unix(row['test'])}\ncheck({entry})\n"
    tests = row.get("test_list")
    if isinstance(tests, list) and tests and all(isinstance(test, str) for test in tests):
        imports = row.get("test_imports") or []
        parts = [_code_in(_unix(completion))[0], row.get("test_setup_code") or "", *imports, *tests]
        return "\n".join(_unix(part) for part in parts) + "\n"
    raise UserError(
        "expected tests in the row: `test` and `entry_point` (HumanEval) or `test_list` (MBPP), got the "
        f"columns {', '.join(sorted(row)) or '(none)'}; give data.prompts the rows with their tests, or "
        "set measure.code to null"
    )


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _code_in(answer: str) -> tuple[str, bool]:
    """(the code, whether it was taken out of a fence).

    Code that starts at once, indented, goes to its closing fence, or to the end.
    """
    opening = re.search(
        r"\A\s*```\w*[ \t]*\n|^```(?:python|python3|py)[ \t]*\n", answer, re.MULTILINE | re.IGNORECASE
    )
    starts_indented = re.match(r"\n*[ \t]", answer) and not answer.lstrip().startswith("```")
    is_fenced = bool(opening and not starts_indented)
    code = answer[opening.end() :] if opening and is_fenced else answer
    return re.split(r"^```", code, maxsplit=1, flags=re.MULTILINE)[0], is_fenced


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k.

    It is the chance that of k samples, drawn without repetition from n of which c pass, at least one passes:
    1 - C(n - c, k) / C(n, k), computed as a product of ratios that cannot overflow.

    Args:
        n: samples of a problem.
        c: those that pass, 0 to n.
        k: 1 to n.

    Raises:
        UserError: k > n.

    References:
        Chen et al. 2021, 2107.03374, eq. 1.
    """
    if not 0 <= c <= n or k < 1:
        raise ValueError(f"expected 0 <= passes <= samples and k >= 1, got {c} of {n}, k = {k}")
    if k > n:
        raise UserError(
            f"pass@{k} needs at least {k} samples of each problem, got {n}: raise generation.samples, or "
            "lower measure.code.k"
        )
    # One factor is 0 where n - c < k <= n.
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """pass@k averaged over problems.

    Args:
        counts: (samples, passes) of each problem.
        k: at most the samples of any problem.
    """
    return math.fsum(pass_at_k(n, c, k) for n, c in counts) / len(counts)
