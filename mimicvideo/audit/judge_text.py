"""Findings in instructions: missing, a placeholder, another language, or another task's."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from mimicvideo.audit.findings import Findings
from mimicvideo.audit.text import is_placeholder, language

MOST = 200_000  # pairs of task and sentence that are compared; datasets with more have a sentence of its own for every episode


class Instructions:
    """What is said of a dataset's episodes.

    Args:
        expected: The language that sentences should have, as an ISO code; `any` accepts all.
    """

    def __init__(self, expected: str) -> None:
        self.expected = expected
        self.without = self.episodes = 0
        self.languages: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._tasks: Counter[str] = Counter()
        self._overflown = False

    @property
    def sentences(self) -> int:
        """How many different ones there are; at least so many, if there are more than MOST."""
        return len({sentence for _, sentence in self._pairs})

    @property
    def tasks(self) -> int:
        """How many different ones there are."""
        return len(self._tasks)

    def episode(self, summary: dict[str, Any], findings: Findings) -> None:
        """Counts an episode's sentences, and adds what is wrong with them by themselves."""
        index, told = summary["episode"], [text for text in summary["instructions"] if text.strip()]
        self.episodes += 1
        if not told:
            self.without += 1
            findings.add("no_instruction", index, "it has no instruction")
        for text in told:
            found = language(text)
            self.languages[found or "unknown"] += 1
            if is_placeholder(text):
                findings.add("placeholder_instruction", index, f"its instruction is {text!r}")
            elif self.expected != "any" and found not in (None, self.expected):
                findings.add("other_language", index, f"its instruction seems to be {found}, not {self.expected}: {text[:120]!r}")
        if len(self._pairs) >= MOST:
            self._overflown = True
        else:
            self._tasks[summary["task"]] += 1
            for text in set(map(_plain, told)):
                self._pairs[summary["task"], text] += 1

    def strangers(self, summaries: Iterable[dict[str, Any]], findings: Findings) -> None:
        """Adds episodes that tell another task's sentence: rare in their own task, usual in the other."""
        if self._overflown or len(self._tasks) < 2:
            return
        usual: dict[str, Counter[str]] = defaultdict(Counter)
        for (task, text), count in self._pairs.items():
            if task and _plain(task) != text:
                usual[text][task] = count
        for summary in summaries:
            task = summary["task"]
            for text in set(map(_plain, summary["instructions"])) if task else ():
                if len(usual[text]) < 2 or _plain(task) == text:
                    continue
                other, count = usual[text].most_common(1)[0]
                # At most a third of its task says so, most episodes of the other do, and they are at least three times as many.
                if other != task and count >= 3 * usual[text][task] and 3 * usual[text][task] <= self._tasks[task]:
                    if 2 * count > self._tasks[other]:
                        findings.add("foreign_instruction", summary["episode"], f"a {task} episode says {text!r}, as those of {other} do")
                    break


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .!")
