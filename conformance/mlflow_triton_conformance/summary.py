"""The report in a few lines, for a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_triton_conformance.report import Report, Result

__all__ = ["lines"]

ORDER: tuple[Result, ...] = ("passed", "failed", "unexpected pass", "expected failure", "skipped", "not run")


def lines(report: Report) -> Iterator[str]:
    """Write a line for each chapter, then the failed requirements, then expectations that are out of date."""
    width = max(len(chapter["title"]) for chapter in report["chapters"])
    for chapter in report["chapters"]:
        of_it = [it for it in report["requirements"] if it["chapter"] == chapter["id"]]
        counts = Counter(it["result"] for it in of_it)
        told = ", ".join(f"{counts[result]} {result}" for result in ORDER if counts[result])
        yield f"{chapter['title']:<{width}}  {told or 'no requirements'}"
    for it in report["requirements"]:
        if it["result"] == "failed":
            yield f"{it['level']} {it['id']}: {it['sentence']} [{it['source']['title']}]"
            failed = {test["id"] for test in report["tests"] if test["outcome"] in ("failed", "error")}
            yield from (f"    {test}" for test in it["tests"] if test in failed)
    for expectation in report["expectations"]:
        if expectation["result"] == "passed":
            yield f"{expectation['id']} was expected to fail, and passed: take it out of the expectations."
        elif expectation["result"] == "no such requirement":
            yield f"{expectation['id']} was expected to fail, and there is no such requirement."
