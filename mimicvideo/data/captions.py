"""Which caption goes with a sample: several instructions per episode, long descriptions in training, short ones at evaluation."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Shaped

from mimicvideo.data.errors import DatasetError
from mimicvideo.data.language import foreign_language, is_empty
from mimicvideo.messages import nearest

log = logging.getLogger(__name__)

Unusable = Literal["keep", "replace", "drop"]
Choose = Literal["first", "uniform"]
Period = Literal["keep", "remove", "add"]

# The sidecar of long captions that `mimicvideo captions` writes beside the data: `<root>/mimicvideo_captions.jsonl`, and
# `<file>.mimicvideo_captions.jsonl` where the dataset is one file. A line is a JSON object; see `LongCaption`.
SIDECAR = "mimicvideo_captions.jsonl"
SIDECAR_VERSION = 1


@dataclass(frozen=True)
class CaptionPolicy:
    """What becomes of an episode's instructions. The defaults take the first as it is, which is what the paper does.

    Args:
        long_probability: How often, in [0, 1], a training sample has a long description where there is one. Evaluation never has.
        choose: Whether training takes the `first` instruction (or description), or one `uniform`ly drawn of them.
        empty: What becomes of instructions that say nothing: `keep` them, `replace` them, or `drop` them.
        foreign: Likewise of those that are not English; see `foreign_language`. The paper's Bridge replaces its bad labels by nothing.
        replacement: What replaces them, if the episode has no other instruction and, in training, no long description.
        corrections: Known bad labels and what they should be; "" makes one empty.
        substitutions: What to exchange in all captions, old to new, such as `black bowl` to `bowl` (the official LIBERO code).
        period: Whether a final period is kept, removed or added: training and evaluation should have the same.

    Raises:
        ValueError: If a number or a choice is not one of these.
    """

    long_probability: float = 0.0
    choose: Choose = "first"
    empty: Unusable = "keep"
    foreign: Unusable = "keep"
    replacement: str = ""
    corrections: Mapping[str, str] = field(default_factory=dict)
    substitutions: Mapping[str, str] = field(default_factory=dict)
    period: Period = "keep"

    def __post_init__(self) -> None:
        if not 0 <= self.long_probability <= 1:
            raise ValueError(f"long_probability must lie in [0, 1], got {self.long_probability}")
        for name, choices in (("choose", Choose), ("empty", Unusable), ("foreign", Unusable), ("period", Period)):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f"captions.{name} must be one of {', '.join(get_args(choices))}, got {value!r}")

    def clean(self, text: str) -> str:
        """A caption without surplus spaces, corrected, with words and the final period as wanted."""
        text = " ".join(text.split())
        text = " ".join(self.corrections.get(text, text).split())
        for old, new in self.substitutions.items():
            text = text.replace(old, new)
        if self.period == "keep" or not text:
            return text
        text = text.rstrip(". ")
        return text + "." if self.period == "add" and text else text


@dataclass(frozen=True)
class EpisodeCaptions:
    """The captions that an episode may be shown with.

    Attributes:
        short: Usable instructions, at least one; the replacement where there is none.
        long: Descriptions.
        replaced: Whether `short` is the replacement.
    """

    short: tuple[str, ...]
    long: tuple[str, ...] = ()
    replaced: bool = False

    def training(self, policy: CaptionPolicy, seed: int, position: int) -> str:
        """The caption of the training sample at a position: a function of these alone, on any rank and after any resume."""
        random = np.random.default_rng([seed, 3, position])  # 3: no other draw of a sample has this stream
        long_one = random.random() < policy.long_probability or self.replaced
        choices = self.long if self.long and long_one else self.short
        return choices[0] if policy.choose == "first" else choices[int(random.integers(len(choices)))]

    def evaluation(self) -> str:
        """The short instruction."""
        return self.short[0]


@dataclass
class CaptionCounts:
    """What was found: labels are instructions, of which an episode may have several."""

    episodes: int = 0
    labels: int = 0
    empty: int = 0
    corrected: int = 0
    foreign: Counter[str] = field(default_factory=Counter)  # by language
    without: int = 0  # episodes without a usable instruction
    replaced: int = 0  # of these, those that go with the replacement or a long description
    dropped: int = 0  # of these, those that are not used
    several: int = 0  # episodes with more than one instruction to choose from
    described: int = 0  # episodes with a long description

    def __str__(self) -> str:
        foreign = ", ".join(f"{count} {language}" for language, count in sorted(self.foreign.items()))
        return (
            f"{self.episodes} episodes, {self.labels} instructions: {self.empty} empty, {self.foreign.total()} not English"
            f"{f' ({foreign})' if foreign else ''}, {self.corrected} corrected; {self.without} episodes without a usable one: "
            f"{self.replaced} replaced, {self.dropped} dropped; {self.several} with several, {self.described} with a long description"
        )


@dataclass
class PreparedCaptions:
    """A dataset's captions.

    Attributes:
        episodes: By key.
        dropped: Keys of the episodes that the policy does not use, with the reason.
        counts: What was found.
    """

    episodes: dict[str, EpisodeCaptions]
    dropped: dict[str, str]
    counts: CaptionCounts


def prepare_captions(
    instructions: Mapping[str, Sequence[str]], policy: CaptionPolicy, long: Mapping[str, Sequence[str]] | None = None
) -> PreparedCaptions:
    """Sorts out the instructions of a dataset.

    An unusable instruction (empty, or not English) goes if its kind is to be replaced or dropped and the episode has a usable one. If it
    has none, `replace` keeps the episode and `drop` does not.

    Args:
        instructions: By episode, those that the dataset has; an episode without any has an empty one.
        policy: What becomes of them.
        long: By episode, descriptions; see `read_long_captions`. They are cleaned, not judged.
    """
    prepared = PreparedCaptions({}, {}, CaptionCounts(episodes=len(instructions)))
    counts = prepared.counts
    for key, given in instructions.items():
        usable, unusable = [], []
        for text in given or [""]:
            cleaned = policy.clean(text)
            counts.labels += 1
            counts.corrected += " ".join(text.split()) in policy.corrections
            action: Unusable = "keep"
            if is_empty(cleaned):
                counts.empty += 1
                action, reason = policy.empty, "it has no instruction"
            elif language := foreign_language(cleaned):
                counts.foreign[language] += 1
                action, reason = policy.foreign, f"its instruction is not English ({language}): {cleaned!r}"
            if action == "keep":
                usable.append(cleaned)
            else:
                unusable.append((action, reason))
        descriptions = tuple(dict.fromkeys(policy.clean(text) for text in (long or {}).get(key, ())))
        counts.described += bool(descriptions)
        if usable:
            prepared.episodes[key] = EpisodeCaptions(tuple(dict.fromkeys(usable)), descriptions)
            counts.several += len(set(usable)) > 1
            continue
        counts.without += 1
        dropping = [reason for action, reason in unusable if action == "drop"]
        if dropping:
            counts.dropped += 1
            prepared.dropped[key] = dropping[0]
        else:
            counts.replaced += 1
            prepared.episodes[key] = EpisodeCaptions((policy.replacement,), descriptions, replaced=True)
    return prepared


def parse_captions(options: Mapping[str, Any] | None) -> CaptionPolicy:
    """A policy from a plain mapping; `corrections` may be the path of a JSON file that maps labels to corrections.

    Raises:
        ValueError: If a key is unknown or a value is none that `CaptionPolicy` takes.
        FileNotFoundError: If there is no such file.
    """
    options = dict(options or {})
    known = [option.name for option in fields(CaptionPolicy)]
    for name in options:
        if name not in known:
            raise ValueError(f"captions.{name} is not accepted{nearest(str(name), known)}")
    if isinstance(path := options.get("corrections"), str):
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"captions.corrections: there is no file {file}")
        try:
            options["corrections"] = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is no JSON ({error}): it must map bad labels to corrections") from None
    for name in ("corrections", "substitutions"):
        value = options.get(name, {})
        if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
            raise ValueError(f"captions.{name} must map text to text, got {value!r}")
    return CaptionPolicy(**options)


# ---- long captions ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LongCaption:
    """One line of a sidecar.

    Attributes:
        episode: The episode's key in its dataset: its index, or its name.
        content: SHA-256 of what the episode is; see `episode_content`. A caption of other data under the same key is not taken.
        caption: The description.
        model: Who wrote it: folder or hub id.
        request: SHA-256 of what it was asked: prompt, number of pictures, length. Another request adds another caption.
    """

    episode: str
    content: str
    caption: str
    model: str
    request: str


def sidecar_path(root: str | Path) -> Path:
    """Where a dataset's long captions are."""
    root = Path(root).expanduser()
    return root.with_name(f"{root.name}.{SIDECAR}") if root.is_file() else root / SIDECAR


def episode_content(instructions: Sequence[str], length: int, *arrays: Shaped[np.ndarray, "..."], extra: str = "") -> str:
    """SHA-256 of what an episode is, without decoding its video.

    Args:
        instructions: As the dataset has them.
        length: Its frames.
        arrays: Its numbers, such as actions and states, as float32.
        extra: More that tells it from others: what is stored of its pictures where there are no numbers.
    """
    digest = hashlib.sha256(json.dumps([list(instructions), length, extra]).encode())
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


class _Reader(Protocol):
    """A dataset that knows its episodes' numbers and pictures."""

    def actions(self, episode: Any) -> np.ndarray: ...

    def proprio(self, episode: Any) -> np.ndarray: ...

    def stored_pictures(self, episode: Any) -> list[Any]: ...


def content_of(episodes: _Reader, episode: Any) -> str:
    """`episode_content` of an episode of a reader: the one that writes captions and those that look for them agree."""
    numbers = episodes.actions(episode), episodes.proprio(episode)
    alike = not any(values.size for values in numbers)  # videos often have one length, and no caption or all the same
    extra = json.dumps(episodes.stored_pictures(episode)) if alike else ""
    return episode_content([episode.instruction], episode.length, *numbers, extra=extra)


def read_long_captions(path: Path) -> list[LongCaption]:
    """The lines of a sidecar; none if there is no file. A last line that is cut short is what a killed writer leaves, and left out.

    Raises:
        DatasetError: If another line is damaged or of another version.
    """
    if not path.is_file():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        log.warning("%s ends within a line, which is left out: its writer was interrupted, run mimicvideo captions again", path)
    names = [entry.name for entry in fields(LongCaption)]
    captions = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if entry["version"] != SIDECAR_VERSION:
                raise DatasetError(
                    f"{path}, line {number}, is of version {entry['version']!r}, this reads {SIDECAR_VERSION}: remove the file"
                )
            captions.append(LongCaption(*(str(entry[name]) for name in names)))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path}, line {number}, is damaged ({error!r}): remove that line, or the file and write it anew") from None
    return captions


def match_long_captions(captions: Sequence[LongCaption], contents: Mapping[str, str]) -> tuple[dict[str, list[str]], int]:
    """Captions by episode, and how many belong to other data.

    Args:
        captions: Of a sidecar.
        contents: `episode_content` by episode key.
    """
    matched: dict[str, list[str]] = {}
    stale = 0
    for caption in captions:
        if contents.get(caption.episode) == caption.content:
            matched.setdefault(caption.episode, []).append(caption.caption)
        else:
            stale += 1
    return matched, stale
