"""The verb `report`: one self-contained page of a study, with its figures, curves, videos, commands and versions."""

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mimicvideo import report_html as page
from mimicvideo.evaluation import Evaluation, SuccessRate
from mimicvideo.report_figures import TAU, curves_figure, noise_level_figure, success_figure
from mimicvideo.report_inputs import Dataset, Inputs, Rollout, Training, commands, read_inputs

DASH = "–"


def report(runs: list[str], out: str = "report.html", title: str = "mimicvideo", videos: int = 6, max_megabytes: float = 40.0) -> Path:
    """Writes what came of some runs to `out`, a page that needs no other file, and the tables as Markdown beside it.

    Args:
        runs: Folders of rollouts, of training runs, and of datasets that `demos` wrote, in the order in which they shall come. What
            one lacks, and a stage or control of which there is no run, is named in the page.
        out: The page; the Markdown has the same name with `.md`.
        title: Of the page.
        videos: Recorded episodes shown for each rollout, besides the one of all tasks together.
        max_megabytes: Of videos in the page; those beyond are named and left out.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If none of the folders holds anything to report.
    """
    inputs = read_inputs(runs)
    if not inputs:
        raise FileNotFoundError("there is nothing to report: " + "; ".join(inputs.missing))
    films = Films(videos, int(max_megabytes * 1e6), inputs)
    sections = [
        *success_section(inputs.rollouts),
        *[part for label, dataset in inputs.datasets.items() for part in dataset_section(label, dataset)],
        *[part for label, training in inputs.trainings.items() for part in training_section(label, training, films)],
        *[part for label, rollout in inputs.rollouts.items() for part in rollout_section(label, rollout, films)],
        *commands_section(inputs),
    ]
    head = [f"<h1>{page.escape(title)}</h1>", page.tiles(highlights(inputs)), page.missing(inputs.missing)]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.page(title, [*head, *sections]))
    path.with_suffix(".md").write_text(markdown(title, inputs, path.name))
    return path


def highlights(inputs: Inputs) -> list[tuple[str, str]]:
    """What to see first: mean success of every rollout, then how long a plan takes."""
    tiles = []
    for label, rollout in inputs.rollouts.items():
        rate, control = rollout.evaluation.overall, rollout.evaluation.control
        what = "success" if control == "none" else f"success, control {control.replace('_', ' ')}"
        tiles.append((percent(rate.success_rate), f"{what} ({rate.successes} of {rate.episodes}, 95 % in {interval(rate)} %): {label}"))
    for label, rollout in inputs.rollouts.items():
        latency = rollout.evaluation.latency
        if rollout.evaluation.control == "none" and latency.get("calls"):
            device = rollout.evaluation.record["hardware"].get("gpu") or "CPU"
            what = f"median time to plan for {latency['mean_batch']:.0f} at once on {device}: {label}"
            tiles.append((f"{latency['batch_ms']['p50']:.0f} ms", what))
    return tiles


# ---- sections -------------------------------------------------------------------------------------------------------------------


def success_section(rollouts: dict[str, Rollout]) -> list[str]:
    """Tasks and controls side by side."""
    if not rollouts:
        return []
    evaluations = {label: rollout.evaluation for label, rollout in rollouts.items()}
    head = ["task", *[f"{page.escape(label)}<br><i>control: {page.escape(one.control)}</i>" for label, one in evaluations.items()]]
    rows = [
        [page.escape(task), *[success_cell(rate) for rate in rates]] for task, rates in success_rows(evaluations.values())
    ]  # fmt: skip
    note = (
        "Success is the benchmark's own flag. Brackets hold the 95 % Wilson interval. Evaluation seeds are never those of demonstrations."
    )
    return [
        "<h2>Success</h2>",
        page.table(head, rows, total=True),
        f'<p class="soft small">{note}</p>',
        page.picture(success_figure(evaluations), "svg+xml"),
    ]


def dataset_section(label: str, dataset: Dataset) -> list[str]:
    """What was demonstrated, and what was dropped."""
    counts: dict[str, dict[str, int]] = dataset.meta.get("counts") or {}
    parts = [f"<h2>Demonstrations: {page.escape(label)}</h2>", f'<p class="soft">{page.escape(dataset.folder)}</p>']
    if counts:
        columns = list(next(iter(counts.values())))
        rows = [[page.escape(task), *[str(count.get(column, DASH)) for column in columns]] for task, count in counts.items()]
        rows.append(["all", *[str(sum(count.get(column, 0) for count in counts.values())) for column in columns]])
        parts.append(page.table(["task", *[column.replace("_", " ") for column in columns]], rows, total=True))
    return [*parts, page.folded("settings", page.code(json.dumps(dataset.meta.get("generator", dataset.meta), indent=2)))]


def training_section(label: str, training: Training, films: "Films") -> list[str]:
    """Curves, noise levels, samples, final figures, configuration."""
    parts = [f"<h2>{page.escape(training.stage)}: {page.escape(label)}</h2>", f'<p class="soft">{page.escape(training.folder)}</p>']
    for figure, caption in (
        (curves_figure(training.curves), "Losses, and what else validation measures"),
        (noise_level_figure(training.curves), "Validation error by noise level"),
    ):
        if figure:
            parts.append(page.picture(figure, "svg+xml", caption))
    for folder in dict.fromkeys([*training.samples[:1], *training.samples[-1:]]):
        step = int(folder.name.rpartition("_")[2])
        parts.append(page.picture((folder / "strip.png").read_bytes(), "png", f"Real and generated video at step {step}"))
    if training.samples:
        shown = [films.show(path, f"{path.stem}: real | generated") for path in sorted(training.samples[-1].glob("*.mp4"))[: films.most]]
        parts.append(f'<div class="row">{"".join(shown)}</div>')
    parts.append(page.folded("last figures", page.table(["metric", "step", "value"], final_figures(training))))
    if (config := training.folder / "fit.yaml").exists():
        parts.append(page.folded("configuration (fit.yaml)", page.code(config.read_text())))
    return parts


def rollout_section(label: str, rollout: Rollout, films: "Films") -> list[str]:
    """Videos, and what the figures were made with."""
    evaluation = rollout.evaluation
    heading = f"<h2>Rollout: {page.escape(label)} <span class='soft'>(control: {page.escape(evaluation.control)})</span></h2>"
    parts = [heading, f'<p class="soft">{page.escape(rollout.folder)}</p>']
    grids = [path for path in rollout.videos if path.name == "grid.mp4"]
    singles = [path for path in rollout.videos if path not in grids]
    if grids:
        parts.append(films.show(grids[0], "One episode of every task"))
    if singles:
        parts.append(f'<div class="row">{"".join(films.show(path, caption(path), 200) for path in spread(singles, films.most))}</div>')
    if evaluation.overall.errors:
        rows = [[page.escape(one.task), str(one.index), page.escape(one.error)] for one in evaluation.episodes if one.error]
        parts += ["<h3>Episodes that could not be finished (not counted)</h3>", page.table(["task", "number", "error"], rows)]
    return [*parts, page.folded("hashes, versions, hardware, latency, seeds", record_table(evaluation))]


def commands_section(inputs: Inputs) -> list[str]:
    """What to type to do it again."""
    lines = command_lines(inputs)
    return ["<h2>Commands</h2>", page.code("\n".join(lines))] if lines else []


def record_table(evaluation: Evaluation) -> str:
    """Everything that a rollout noted about itself, flat."""
    seeds = {f"seeds {task}": ", ".join(str(one.seed) for one in evaluation.episodes if one.task == task) for task in evaluation.tasks}
    flat = flatten({"latency": evaluation.latency, **{key: value for key, value in evaluation.record.items() if key != "contract"}}) | seeds
    return page.table([], [[page.escape(name), page.escape(value)] for name, value in flat.items()], mono=True)


class Films:
    """Puts videos into the page until there is no more room for them."""

    def __init__(self, most: int, room: int, inputs: Inputs) -> None:
        self.most, self.room, self.inputs = most, room, inputs

    def show(self, path: Path, text: str, width: int | None = None) -> str:
        """The video, or nothing and a note that it is missing."""
        content = path.read_bytes()
        if len(content) > self.room:
            self.inputs.missing.append(f"{path} ({len(content) / 1e6:.1f} MB): too large for this page (max_megabytes)")
            return ""
        self.room -= len(content)
        return page.film(content, text, width)


# ---- the same in Markdown -------------------------------------------------------------------------------------------------------


def markdown(title: str, inputs: Inputs, name: str) -> str:
    """Success, final figures and commands as Markdown."""
    lines = [f"# {title}", "", f"Curves and videos are in [{name}]({name})."]
    if inputs.missing:
        lines += ["", "Not in this report:", "", *[f"- {note}" for note in inputs.missing]]
    if inputs.rollouts:
        evaluations = {label: rollout.evaluation for label, rollout in inputs.rollouts.items()}
        head = ["task", *[f"{label} (control: {one.control})" for label, one in evaluations.items()]]
        rows = [[task, *[success_text(rate) for rate in rates]] for task, rates in success_rows(evaluations.values())]
        lines += ["", "## Success", "", *pipes(head, rows), "", "Success [95 % Wilson interval] (successes/episodes)."]
    for label, training in inputs.trainings.items():
        lines += ["", f"## {training.stage}: {label}", "", *pipes(["metric", "step", "value"], final_figures(training))]
    if commanded := command_lines(inputs):
        lines += ["", "## Commands", "", "```", *commanded, "```"]
    return "\n".join(lines) + "\n"


def pipes(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


# ---- figures as text ------------------------------------------------------------------------------------------------------------


def success_rows(evaluations: Iterable[Evaluation]) -> list[tuple[str, list[SuccessRate | None]]]:
    """A row for each task that any rollout had, then one for all of them."""
    evaluations = list(evaluations)
    tasks = dict.fromkeys(task for evaluation in evaluations for task in evaluation.tasks)
    rows: list[tuple[str, list[SuccessRate | None]]] = [(task, [one.tasks.get(task) for one in evaluations]) for task in tasks]
    return [*rows, ("all", [one.overall for one in evaluations])]


def success_cell(rate: SuccessRate | None) -> str:
    return DASH if rate is None else f"{percent(rate.success_rate)} <i>[{interval(rate)}] {rate.successes}/{rate.episodes}</i>"


def success_text(rate: SuccessRate | None) -> str:
    return DASH if rate is None else f"{percent(rate.success_rate)} [{interval(rate)}] ({rate.successes}/{rate.episodes})"


def percent(rate: float | None) -> str:
    return DASH if rate is None else f"{100 * rate:.0f} %"


def interval(rate: SuccessRate) -> str:
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f}"


def final_figures(training: Training) -> list[list[str]]:
    """The last value of every metric; noise levels in order."""

    def order(name: str) -> tuple[str, float]:
        found = TAU.search(name)
        return (name[: found.start()], float(found[1])) if found else (name, -1.0)

    return [[name, str(training.curves[name][-1][0]), f"{training.curves[name][-1][1]:.4g}"] for name in sorted(training.curves, key=order)]


def command_lines(inputs: Inputs) -> list[str]:
    """In the order of work: demonstrations, training, rollouts."""
    lines = []
    for label, dataset in inputs.datasets.items():
        lines += [f"# {label}", demos_command(dataset)]
    for label, run in [*inputs.trainings.items(), *inputs.rollouts.items()]:
        given = commands(run.folder)
        lines += [f"# {label}" + ("" if given else ": the command was not recorded"), *given]
        if (config := run.folder / "fit.yaml").exists():
            lines.append(f"#   configuration {config}, SHA-256 {hashlib.sha256(config.read_bytes()).hexdigest()}")
    return lines


def demos_command(dataset: Dataset) -> str:
    """The `demos` that generates the same episodes, from the settings that the dataset records."""
    settings: dict[str, Any] = dataset.meta.get("generator") or {}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    return shlex.join(["mimicvideo", "demos", f"--root={dataset.folder}", *[f"--{name}={text}" for name, text in texts.items()]])


def caption(path: Path) -> str:
    """`reach-v3_000_success` → `reach-v3, episode 0: success`."""
    task, _, rest = path.stem.rpartition("_")
    task, _, index = task.rpartition("_")
    return f"{task}, episode {int(index)}: {rest}" if index.isdigit() else path.stem


def spread(items: Sequence[Path], most: int) -> list[Path]:
    """Up to `most`, evenly over all of them."""
    return [items[index * len(items) // min(most, len(items))] for index in range(min(most, len(items)))]


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Nested dicts as one: `a b` for key b of key a."""
    if not isinstance(value, dict):
        return {name: json.dumps(value) if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else str(value)}
    flat = {}
    for key, item in value.items():
        flat |= flatten(item, f"{name} {key}".strip())
    return flat
