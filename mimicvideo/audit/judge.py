"""Summaries become findings: what is wrong with an episode by itself, or beside the usual of its dataset."""

import math
from typing import Any

from mimicvideo.audit.calibration import RELATED, ROWS, Calibration
from mimicvideo.audit.findings import Findings, kind_of
from mimicvideo.audit.judge_pictures import judge_pictures
from mimicvideo.audit.population import Population, log_slope, loss
from mimicvideo.audit.signals import STILL
from mimicvideo.data.episodes import Episodes

UNITS = 1.0  # decades: nature varies by less, and the smallest usual mistake of units (57.3, degrees for radians) by more
LOST = 0.3  # of correlation: what a dimension loses and another gains before they count as exchanged


class Judge:
    """Finds faults in summaries of one dataset's episodes.

    Args:
        reader: The dataset.
        calibration: See `calibrate`.
        usual: Its population.
        findings: Where faults are added.
    """

    def __init__(self, reader: Episodes, calibration: Calibration, usual: Population, findings: Findings) -> None:
        self.calibration, self.usual, self.findings = calibration, usual, findings
        self.names = {"actions": reader.action_names, "proprio": reader.proprio_names}
        self.robot = bool(reader.action_names or reader.proprio_names)
        self.row_hz = reader.control_hz / reader.stride
        self.cameras = [camera.name for camera in reader.cameras]

    def episode(self, summary: dict[str, Any]) -> None:
        """Adds what is wrong with one episode."""
        index = summary["episode"]
        if summary["problem"]:
            self.findings.add(kind_of(summary["problem"]), index, summary["problem"])
        self._length(summary, index)
        numbers = summary.get("numbers")
        if numbers is None:
            return
        for name, text in numbers["not_finite"].items():
            self.findings.add("not_finite", index, f"{name} hold {text}")
        if numbers["times"]:
            self._times(numbers["times"], index)
        constant: set[tuple[str, int]] = set()
        if "actions" in numbers:
            resting = self._resting(numbers)
            if summary["length"] >= ROWS:  # in a few rows many a dimension rests
                constant = self._constant(numbers, resting, index)
            self._magnitude(numbers, index)
            self._saturated(numbers, summary["length"], index)
            for number, gripper in enumerate(numbers["gripper"]):
                self._gripper(number, gripper, index)
            if "follow" in numbers:
                self._follow(numbers["follow"], constant | resting, index)
        if "idle" in numbers and not self._stands(numbers, summary["length"]):
            self._idle(numbers["idle"], summary["length"], index)
        if "pictures" in summary:
            judge_pictures(summary["pictures"], index, self.usual, self.findings, self.robot)

    def dataset(self) -> None:
        """Adds what is wrong with all episodes alike."""
        for kind in ("actions", "proprio"):
            grippers = self.calibration.action_grippers if kind == "actions" else self.calibration.state_grippers
            never = [dim for dim in range(len(self.names[kind])) if self.usual[f"{kind}/{dim}/constant"].mean == 1 and dim not in grippers]
            if never and len(never) == len(self.names[kind]) - len(grippers):
                self.findings.add("nothing_changes", None, f"in no episode do {kind} ever change")
            elif never:
                self.findings.add("unused_dim", None, f"{kind} never change in {self._dims(kind, never)}")
        lag = self.usual["follow/lag"].median
        if self.usual["follow/fit"].median >= RELATED and lag <= -0.75:
            self.findings.add(
                "shifted_actions", None, f"in most episodes actions come {-lag:.1f} rows after the motion that they should cause"
            )
        for end in ("head", "tail"):
            share = self.usual[f"idle/{end}"].median / math.exp(self.usual["length"].median)
            if share > 0.2:
                self.findings.add(f"idle_{end}", None, f"in most episodes nothing moves in {share:.0%} of the rows at the {end}")
        for camera in self.cameras:
            if (share := self.usual[f"{camera}/frozen"].median) > 0.3:
                text = f"camera {camera}: in most episodes {share:.0%} of the pictures repeat the one before"
                text += " while the robot moves" if self.robot else ""
                self.findings.add("dropped_frames", None, text)
        self._names_disagree()

    def _names_disagree(self) -> None:
        """Actions whose states bear another's name: `x` follows `y` and `y` follows `x`, in all episodes."""
        by_name = {_plain(name): dim for dim, name in enumerate(self.names["proprio"])}
        found = {}
        for relation in self.calibration.relations:
            named = by_name.get(_plain(self.names["actions"][relation.action]))
            if named is not None and named != relation.state:
                found[named] = relation.state
        for named, state in found.items():
            if found.get(state) == named and named < state:
                names = f"{self.names['proprio'][named]} and {self.names['proprio'][state]}"
                self.findings.add("swapped_dims", None, f"in most episodes the states {names} follow each other's actions")

    def _length(self, summary: dict[str, Any], index: int) -> None:
        length, usual = summary["length"], self.usual["length"]
        if usual.far(math.log(max(length, 1)), math.log(3)):  # three times: slow and fast demonstrations differ by two
            kind = "short_episode" if math.log(max(length, 1)) < usual.median else "long_episode"
            self.findings.add(kind, index, f"it has {length} rows, usual are {math.exp(usual.median):.0f}")

    def _times(self, times: dict[str, Any], index: int) -> None:
        if times["backwards"] is not None:
            self.findings.add(
                "timestamps_not_increasing", index, f"the timestamp of row {times['backwards']} is not later than the one before"
            )
        if not times["step"] > 0:
            return
        hz = 1 / times["step"]
        # 2 % is one frame of a 61-frame window; LeRobot itself rounds rates to whole numbers.
        if abs(hz - self.row_hz) > max(0.02 * self.row_hz, 0.5):
            self.findings.add("wrong_rate", index, f"its timestamps run at {hz:.2f} rows per second, the dataset says {self.row_hz:.2f}")
        gap = times["largest"] / times["step"]
        if (
            times["backwards"] is None
            and gap > 1.75
            and (not self.usual["times/largest"].known or self.usual["times/largest"].far_above(gap, 0.75))
        ):
            text = f"{times['largest']:.3f} s pass before row {times['largest_row']}, {gap:.1f} times the usual"  # one lost row gives 2
            self.findings.add("timestamp_gap", index, text)

    def _constant(self, numbers: dict[str, Any], resting: set[tuple[str, int]], index: int) -> set[tuple[str, int]]:
        found = set()
        for kind, what in (("actions", "constant_action"), ("proprio", "constant_proprio")):
            grippers = self.calibration.action_grippers if kind == "actions" else self.calibration.state_grippers
            still = [dim for dim, (low, high) in enumerate(zip(numbers[kind]["min"], numbers[kind]["max"], strict=True)) if low == high]
            still = [dim for dim in still if dim not in grippers]
            # Of several tasks some may not need every dimension, but none no dimension at all.
            nothing = self.usual.varied and len(still) == len(self.names[kind]) - len(grippers)
            if any((kind, dim) not in resting for dim in range(len(self.names[kind])) if dim not in grippers):
                still = [dim for dim in still if (kind, dim) not in resting]
            dims = [dim for dim in still if self._rarely(f"{kind}/{dim}/constant", nothing)]
            if dims:
                value = ", ".join(f"{numbers[kind]['min'][dim]:.4g}" for dim in dims)
                self.findings.add(what, index, f"{self._dims(kind, dims)} stay at {value}, in other episodes they change")
            found |= {(kind, dim) for dim in dims}
        return found

    def _resting(self, numbers: dict[str, Any]) -> set[tuple[str, int]]:
        """Dimensions that are told to stay and do: an arm that a task does not need, an axis along which nothing is to be moved."""
        found = set()
        for relation in self.calibration.relations:
            low, high = (numbers["actions"][end][relation.action] for end in ("min", "max"))
            told = high - low if relation.mode == "absolute" else max(abs(low), abs(high))
            moved = numbers["proprio"]["max"][relation.state] - numbers["proprio"]["min"][relation.state]
            # In a whole episode no farther than in one row of a fast motion: encoders are noisy.
            if told <= STILL * self.calibration.action_scale[relation.action] and moved <= self.calibration.speed[relation.state]:
                found |= {("actions", relation.action), ("proprio", relation.state)}
        return found

    def _rarely(self, name: str, unknown: bool = False) -> bool:
        return (self.usual[name].known or unknown) and self.usual[name].mean <= self.usual[name].rare

    def _stands(self, numbers: dict[str, Any], length: int) -> bool:
        """Whether nothing moves in a whole episode, which is another finding than an idle end."""
        kind = "proprio" if self.names["proprio"] else "actions"
        return numbers[kind]["min"] == numbers[kind]["max"] if self.names[kind] else min(numbers["idle"]) >= length - 1

    def _magnitude(self, numbers: dict[str, Any], index: int) -> None:
        for kind in ("actions", "proprio"):
            factors = {}
            for dim, (low, high) in enumerate(zip(numbers[kind]["min"], numbers[kind]["max"], strict=True)):
                usual, size = self.usual[f"{kind}/{dim}/magnitude"], math.log10(max(abs(low), abs(high), 1e-9))
                if min(usual.high, usual.median) > -6 and usual.far_above(size, UNITS) and size - usual.high > UNITS:
                    factors[dim] = 10 ** (size - usual.median)
            if factors:
                text = f"{self._dims(kind, factors)} are {', '.join(f'{factor:.0f}' for factor in factors.values())} times the usual size"
                self.findings.add("wrong_units", index, text + _guess(min(factors.values())))

    def _saturated(self, numbers: dict[str, Any], length: int, index: int) -> None:
        dims = [
            dim
            for dim, share in enumerate(numbers["actions"]["at_limit"])
            if numbers["actions"]["min"][dim] < numbers["actions"]["max"][dim]
            and dim not in self.calibration.action_grippers
            and length >= ROWS
            and self.usual[f"actions/{dim}/at_limit"].far_above(share, 0.25)  # a quarter of the steps: no smooth motion rests that long
        ]
        if dims:
            shares = ", ".join(f"{numbers['actions']['at_limit'][dim]:.0%}" for dim in dims)
            self.findings.add("saturated_action", index, f"{self._dims('actions', dims)} are at their limits in {shares} of the steps")

    def _gripper(self, number: int, gripper: dict[str, Any], index: int) -> None:
        name = self.names["actions"][self.calibration.action_grippers[number]]
        low, high = self.usual[f"gripper/{number}/min"], self.usual[f"gripper/{number}/max"]
        span, sign = high.median - low.median, self.usual[f"gripper/{number}/opens"]
        if span > 0:
            inside = gripper["min"] == gripper["max"] and low.median <= gripper["min"] <= high.median
            if not inside and (low.far(gripper["min"], 0.25 * span) or high.far(gripper["max"], 0.25 * span)):
                text = f"{name} lies in [{gripper['min']:.3g}, {gripper['max']:.3g}], usual is [{low.median:.3g}, {high.median:.3g}]"
                self.findings.add("gripper_range", index, text)
        if abs(gripper["opens"]) >= 0.5 and sign.same and abs(sign.mean) >= 1 - 2 * sign.rare and gripper["opens"] * sign.median < 0:
            opens = "opens" if gripper["opens"] > 0 else "closes"
            self.findings.add("inverted_gripper", index, f"a larger {name} {opens} the gripper, unlike in other episodes")
        elif not self.calibration.state_grippers and span > 0:
            # Without a measured opening: the command at the start, where demonstrations of one robot agree.
            first = self.usual[f"gripper/{number}/first"]
            if first.same and first.far(gripper["first"], 0.5 * span) and abs(first.mean - first.median) <= first.rare * span:
                text = f"{name} starts at {gripper['first']:.3g}, in other episodes at {first.median:.3g}"
                self.findings.add("inverted_gripper", index, text)

    def _follow(self, follow: dict[str, Any], still: set[tuple[str, int]], index: int) -> None:
        relations, fit = self.calibration.relations, self.usual["follow/fit"]
        own = [self.usual[f"follow/{number}/own"] for number in range(len(relations))]
        steady = [
            number
            for number, relation in enumerate(relations)
            if own[number].median >= RELATED and not {("actions", relation.action), ("proprio", relation.state)} & still
        ]
        names = {number: self.names["actions"][relations[number].action] for number in steady}
        cross, crossed = follow["cross"], [self.usual[f"follow/{number}/cross"] for number in range(len(relations))]
        swapped = [
            (a, b)
            for a in steady
            for b in steady
            if a < b
            and relations[a].state != relations[b].state
            and all(
                (own[i].far_below(follow["own"][i], LOST) or crossed[i].far_below(cross[i][i], LOST))
                and abs(cross[i][j]) > max(cross[i][i] + LOST, 0.7 * own[i].median)
                for i, j in ((a, b), (b, a))
            )
        ]
        inverted = [i for i in steady if follow["own"][i] < -0.7 * own[i].median and own[i].far_below(follow["own"][i], 1.0)]
        scaled = {
            i: (log_slope(follow["slope"][i]) or 0.0) - self.usual[f"follow/{i}/slope"].median
            for i in steady
            if follow["own"][i] >= 0.7 * own[i].median and self.usual[f"follow/{i}/slope"].far(log_slope(follow["slope"][i]), UNITS)
        }
        shifted = (
            fit.median >= RELATED
            and follow["fit"] >= 0.8 * fit.median
            and self.usual["follow/lag"].far(follow["lag"], 0.5)
            # Short episodes have no sharp lag: twice as much must remain unexplained at the usual one.
            and self.usual["follow/loss"].far_above(loss(follow["pooled"], self.usual.lag), math.log(2))
        )
        for a, b in swapped:
            text = f"{names[a]} and {names[b]} move each other's states (correlations {cross[a][b]:.2f} and {cross[b][a]:.2f})"
            self.findings.add("swapped_dims", index, text)
        swaps = {number for pair in swapped for number in pair}
        for i in inverted:
            if i not in swaps:
                self.findings.add("inverted_dim", index, f"{names[i]} moves its state the other way (correlation {follow['own'][i]:.2f})")
        if scaled:
            factor = 10 ** abs(next(iter(scaled.values())))
            text = f"states move {factor:.0f} times {'more' if next(iter(scaled.values())) > 0 else 'less'} per unit of "
            self.findings.add("wrong_units", index, text + ", ".join(names[i] for i in scaled) + " than usual" + _guess(factor))
        if shifted:
            rows = follow["lag"] - self.usual["follow/lag"].median
            text = f"actions are {abs(rows):.1f} rows too {'early' if rows > 0 else 'late'} for the states"
            self.findings.add("shifted_actions", index, text)
        if swapped or inverted or shifted:
            return
        if steady and fit.median >= RELATED and fit.far_below(follow["fit"], LOST):
            text = f"states follow the actions with correlation {follow['fit']:.2f}, usual is {fit.median:.2f}"
            self.findings.add("inconsistent_actions", index, text)

    def _idle(self, idle: list[int], length: int, index: int) -> None:
        floor = max(0.5 * self.row_hz, 0.1 * length)  # shorter than a person's reaction, or a tenth of the episode, wastes little
        for end, rows in zip(("head", "tail"), idle, strict=True):
            if self.usual[f"idle/{end}"].far_above(rows, floor):
                text = f"nothing moves in {rows} of {length} rows at the {end} ({rows / self.row_hz:.1f} s)"
                self.findings.add(f"idle_{end}", index, text)

    def _dims(self, kind: str, dims: Any) -> str:
        return f"{'action' if kind == 'actions' else 'state'} {', '.join(self.names[kind][dim] for dim in dims)}"


def _guess(factor: float) -> str:
    """What mistake of units gives such a factor, to a fifth of it."""
    for size, what in ((57.3, "degrees for radians"), (100, "centimetres for metres"), (1000, "millimetres for metres")):
        if abs(math.log(factor / size)) < 0.2:
            return f": {what}?"
    return ""


def _plain(name: str) -> str:
    """`dx`, `delta_x`, `action.x` and `x` are the same."""
    plain = name.lower().replace("-", "_").replace(".", "_")
    for prefix in ("action_", "state_", "delta_", "eef_", "ee_", "tcp_", "hand_", "target_", "d_"):
        plain = plain.removeprefix(prefix)
    return plain[1:] if plain.startswith("d") and plain[1:] in ("x", "y", "z", "roll", "pitch", "yaw", "rx", "ry", "rz") else plain
