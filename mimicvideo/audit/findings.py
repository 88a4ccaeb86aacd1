"""Findings: every kind of fault that the audit knows, how grave it is, and which episodes have it."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["note", "warning", "error"]

# An error makes an episode teach something false or fail to load, and puts it into quarantine. A warning wastes samples or asks for a look.
# A note tells what sound data may have by design, and never decides the status.
KINDS: dict[str, tuple[Severity, str]] = {
    "unusable": ("error", "the reader refuses it"),
    "not_finite": ("error", "NaN or infinite numbers"),
    "too_short": ("error", "fewer rows than training needs"),
    "missing_video": ("error", "a video, or a file with pictures, is not there"),
    "short_video": ("error", "fewer frames than rows"),
    "corrupt_video": ("error", "pictures cannot be decoded, or only by painting over damage; or their file is damaged"),
    "wrong_resolution": ("error", "pictures of another size than the dataset says"),
    "wrong_rate": ("error", "recorded at another rate than the dataset says"),
    "timestamps_not_increasing": ("error", "timestamps repeat or run backwards"),
    "timestamp_gap": ("error", "a hole in the timestamps"),
    "swapped_dims": ("error", "two dimensions of actions or states are exchanged"),
    "inverted_dim": ("error", "an action dimension has the opposite sign"),
    "wrong_units": ("error", "numbers of another magnitude: degrees for radians, millimetres for metres"),
    "shifted_actions": ("error", "actions are rows before or behind the states they cause"),
    "inconsistent_actions": ("error", "states do not follow the actions"),
    "inverted_gripper": ("error", "the gripper closes where it opens in other episodes"),
    "gripper_range": ("error", "the gripper's commands have other limits"),
    "constant_action": ("error", "an action dimension never changes"),
    "constant_proprio": ("error", "a state dimension never changes"),
    "nothing_changes": ("warning", "all dimensions of actions or states are constant over the whole dataset"),
    "unused_dim": ("note", "a dimension is constant over the whole dataset"),
    "saturated_action": ("warning", "an action dimension stays at its limits"),
    "black_frames": ("error", "pictures without light"),
    "blank_frames": ("error", "pictures of one colour"),
    "frozen_video": ("error", "the picture stands still while the robot moves"),
    "dropped_frames": ("error", "frames repeat or are left out while the robot moves"),
    "swapped_cameras": ("error", "cameras are exchanged"),
    "swapped_channels": ("error", "red and blue are exchanged"),
    "flipped_pictures": ("error", "pictures are mirrored or upside down"),
    "other_scene": ("warning", "pictures unlike those of all other episodes"),
    "exposure_jump": ("warning", "the brightness of the whole picture jumps"),
    "duplicate_episode": ("error", "the same numbers and pictures as another episode"),
    "copied_numbers": ("error", "the numbers of another episode under other pictures"),
    "copied_pictures": ("error", "the pictures of another episode under other numbers"),
    "near_duplicate": ("warning", "almost the same motion as another episode"),
    "idle_head": ("warning", "nothing moves at the start"),
    "idle_tail": ("warning", "nothing moves at the end"),
    "short_episode": ("warning", "much shorter than the others"),
    "long_episode": ("warning", "much longer than the others"),
    "no_instruction": ("warning", "no instruction"),
    "placeholder_instruction": ("warning", "a placeholder for an instruction"),
    "other_language": ("warning", "an instruction in another language"),
    "foreign_instruction": ("error", "the instruction of another task"),
}
LISTED = 1000  # findings of one kind in one dataset that are kept with their text; all are counted

# What readers say about episodes that they refuse, most specific first.
_REASONS = [
    (r"\.parquet (is missing|is damaged|holds|lacks|has)", "unusable"),
    (r"(caption|text) .*cannot be read|is no (UTF-8 )?text|holds .* where a sentence should be", "unusable"),
    (r"(stamps|times) do not (increase|ascend)", "timestamps_not_increasing"),
    (r"NaN or infinite", "not_finite"),
    (r"rows, fewer than", "too_short"),
    (r"all its pictures are black", "black_frames"),
    (r"no such file|has no video|has no pictures|(is|are) missing", "missing_video"),
    (r"has no frame at|another rate|frames per second", "wrong_rate"),
    (r"shorter than|ends before|of \d+ frames|\d+ pictures .*(but|for) \d+ (times|steps)", "short_video"),
    (r"pixels", "wrong_resolution"),
    (r"video|picture|truncated|damaged|FFmpeg|decode|JPEG|PNG|image|ends after \d+ of", "corrupt_video"),
]


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        kind: A key of KINDS.
        episode: Its index; None if it is the whole dataset's.
        text: What was found, with numbers.
    """

    kind: str
    episode: int | None
    text: str

    @property
    def severity(self) -> Severity:
        return KINDS[self.kind][0]


class Findings:
    """Those of one dataset: all counted and, by episode, remembered in a few bytes; the first LISTED of each kind with their text."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self._listed: dict[str, list[Finding]] = defaultdict(list)
        self._errors: dict[int, str] = {}

    def add(self, kind: str, episode: int | None, text: str) -> None:
        """Counts a finding."""
        finding = Finding(kind, episode, text)
        self.counts[kind] += 1
        if len(self._listed[kind]) < LISTED:
            self._listed[kind].append(finding)
        if episode is not None and finding.severity == "error":
            before = self._errors.get(episode)
            self._errors[episode] = f"{before}; {kind}: {text}" if before else f"{kind}: {text}"

    def __iter__(self) -> Iterator[Finding]:
        """Errors before warnings before notes, then by kind as in KINDS and by episode."""
        for kind in sorted(self._listed, key=lambda kind: (-get_args(Severity).index(KINDS[kind][0]), list(KINDS).index(kind))):
            yield from sorted(self._listed[kind], key=lambda finding: -1 if finding.episode is None else finding.episode)

    def number(self, severity: Severity) -> int:
        """How many there are of a severity."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind][0] == severity)

    @property
    def quarantined(self) -> dict[int, str]:
        """Why episodes with errors should not be trained on, by index."""
        return self._errors


def kind_of(reason: str) -> str:
    """The kind of fault that a reader's sentence is about."""
    if counts := re.search(r"has (\d+) rows, its pictures (\d+)", reason):
        return "short_video" if int(counts[2]) < int(counts[1]) else "unusable"
    return next((kind for pattern, kind in _REASONS if re.search(pattern, reason)), "unusable")
