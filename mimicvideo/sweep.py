"""Hydra multirun over the verbs: every job is a process of its own, and its objective goes back to the sweeper.

A process a job, since under DDP the ranks of a job would otherwise each sample their own trial, and since only the end of a
process returns all of its GPU memory.
"""

import itertools
import json
import math
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path

import hydra
import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from mimicvideo.compose import CONF, check_class_blocks, conf, groups, short_errors
from mimicvideo.messages import ConfigError, nearest

SWEEPABLE = ("fit", "validate", "test", "rollout")  # verbs that end with numbers
CHECK_AT_MOST = 64  # jobs of a grid; of a larger one every value is checked once

HELP = """usage: mimicvideo sweep VERB [group=choice[,choice]] [key=value[,value]] ...

Runs fit, validate, test or rollout once for every combination of the values, each in a process of its own.
Keys are written in full, as in the yaml files: model.init_args.block, not model.block.

  experiment=quickstart_action model.init_args.block=1,3,5    a grid; range(0,4) and glob(*) work too
  sweep=blocks                                                what a file of conf/sweep/ tries
  sweep=tpe                                                   Optuna chooses the values and gets the objective back
  objective=val/action_mse                                    the metric that counts, of <run>/metrics.json
  run_dir=runs/blocks                                         where the runs go, each in a folder of its own
  hydra/launcher=joblib hydra.launcher.n_jobs=2               several at a time; or submitit_local, submitit_slurm, slurm

All keys and values of all jobs are checked before the first starts.
"""


def sweep(argv: list[str]) -> None:
    """Sweeps a verb: `sweep(["fit", "experiment=quickstart_action", "model.init_args.block=1,3"])`.

    Keys are written in full and need no `+`: those that no yaml spells out are checked against the classes like all others.

    Raises:
        ConfigError: If the verb, a group, a choice or a key does not exist.
        SystemExit: With status 2 if the classes refuse a key or a value of any job. Nothing has run then.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return
    verb, *given = argv
    if verb not in SWEEPABLE:
        raise ConfigError(f"{verb!r} cannot be swept{nearest(verb, SWEEPABLE)}")
    for argument in given:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: a sweep takes Hydra's key=value, say model.init_args.block=1,3")
    with short_errors(verb), conf():
        overrides = [hydra_override(override) for override in parse(given)]
        composed = {name: OmegaConf.to_yaml(compose(verb, job), resolve=True) for name, job in jobs(verb, overrides).items()}
    check(verb, composed)
    sys.argv[1:] = ["--multirun", f"--config-name={verb}", *overrides]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=verb)(run_job)()


def parse(overrides: list[str]) -> list[Override]:
    """Overrides in Hydra's grammar, parsed. Call it inside `conf()`."""
    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)


def hydra_override(override: Override) -> str:
    """The override as Hydra gets it.

    `key=value` becomes `++key=value`: Hydra would refuse a key that no yaml spells out, however right it is for the class,
    and jsonargparse refuses the wrong ones with better words. `run_dir=x` is where the sweep puts its jobs.

    Raises:
        ConfigError: If the key is no group but nearly the name of one.
    """
    key, text = override.key_or_group, override.input_line or ""
    if key == "run_dir":
        return f"hydra.sweep.dir={text.partition('=')[2]}"
    if override.type != OverrideType.CHANGE or key in groups() or key.split(".")[0] == "hydra" or "/" in key:
        return text
    if "." not in key and get_close_matches(key, groups(), n=1, cutoff=0.75):
        raise ConfigError(f"{key} is not a group of conf/{nearest(key, groups())}")
    return f"++{text}"


def jobs(verb: str, overrides: list[str]) -> dict[str, list[str]]:
    """The overrides of every job of the grid, each with one value, by the values that differ; of an interval, its two ends."""
    axes = [_one_by_one(override) for override in parse(overrides)]
    chosen = compose(verb, [axis[0] for axis in axes], return_hydra_config=True)
    swept = chosen.hydra.sweeper.get("params") or {}  # by a file of conf/sweep/
    axes = [_one_by_one(override) for override in parse([f"{key}={value}" for key, value in swept.items()])] + axes
    first = [axis[0] for axis in axes]
    if math.prod(map(len, axes)) <= CHECK_AT_MOST:
        grid = map(list, itertools.product(*axes))
    else:
        grid = ([*first[:position], value, *first[position + 1 :]] for position, axis in enumerate(axes) for value in axis)
    several = [len(axis) > 1 for axis in axes]
    return {" ".join(itertools.compress(job, several)).replace("++", "") or "of no choices": job for job in grid}


def _one_by_one(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    value = override.value()
    values = [value.start, value.end] if isinstance(value, IntervalSweep) else override.sweep_string_iterator()
    return [f"{override.get_key_element()}={one}" for one in values]


def check(verb: str, composed: dict[str, str]) -> None:
    """Has every configuration parsed by the verb's own parser in one other process, which imports torch in place of this one.

    Raises:
        ConfigError, SystemExit: If one is refused; the other process has said why.
    """
    for job, text in composed.items():
        try:
            check_class_blocks(yaml.safe_load(text))
        except ConfigError as error:
            raise ConfigError(f"{error} (in the job {job}; none has started)") from error
    checked = subprocess.run([sys.executable, "-m", "mimicvideo.check", verb], input=json.dumps(composed), text=True, check=False)
    if checked.returncode:
        sys.exit(checked.returncode)


def run_job(config: DictConfig) -> float:
    """Runs one composed configuration and returns its objective.

    Raises:
        RuntimeError: If the job fails or does not report the objective.
    """
    job = HydraConfig.get()
    verb, run_dir = job.job.config_name, Path(job.runtime.output_dir)
    composed = run_dir / "composed.yaml"
    OmegaConf.save(config, composed, resolve=True)
    command = [sys.executable, "-m", "mimicvideo", verb, f"--config={composed}", f"--run_dir={run_dir}"]
    if status := subprocess.run(command, check=False).returncode:
        raise RuntimeError(f"status {status} from: {' '.join(command)}")
    metrics = json.loads((run_dir / "metrics.json").read_text())
    name = config.get("objective", "success_rate")  # rollouts have but one
    if name not in metrics:
        raise RuntimeError(f"objective={name} is not a metric of {run_dir}{nearest(name, metrics)}")
    return metrics[name]
