"""Hydra composes what the files of conf/ choose; LightningCLI checks and builds it. No torch here."""

import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mimicvideo.messages import ConfigError, nearest
from mimicvideo.shipped import CONF

CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}


def choice(file: str, verb: str) -> list[str] | None:
    """Hydra overrides that a configuration file stands for.

    `conf/decoder/dit_small.yaml` is `decoder=dit_small`; `conf/fit.yaml` is none; a file elsewhere is not Hydra's (None).

    Raises:
        ConfigError: If the file is another verb's.
    """
    if _is_content(file) or CONF not in (path := Path(file).resolve()).parents:
        return None
    group = path.parent.relative_to(CONF).as_posix()
    if group != ".":
        return [f"{group}={path.stem}"]
    if path.stem != verb:
        raise ConfigError(f"--config: conf/{path.name} is not for `{verb}`: use conf/{verb}.yaml")
    return []


def compose_argv(argv: list[str]) -> list[str]:
    """Replaces all `--config conf/...` by the one configuration that Hydra composes from them.

    Args:
        argv: Arguments after the program's name: a verb, say `fit`, then flags.

    Returns:
        The same for jsonargparse. A `--config` outside conf/ is laid over the composed one, and flags over both.

    Raises:
        ConfigError: If a file does not exist, cannot be parsed or does not go with the verb.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    given, flags = parser.parse_known_args(argv[1:])
    overrides, overlays = [], []
    for file in given.config:
        chosen = choice(file, argv[0])
        if chosen is None:
            check_overlay(file)
            overlays.append(f"--config={file}")
        else:
            overrides.append(chosen)
    flags = inline(flags)
    if not overrides:
        return [argv[0], *(f"--config={file}" for file in given.config), *flags]
    composed = compose_verb(argv[0], [override for chosen in overrides for override in chosen])
    return [argv[0], f"--config={OmegaConf.to_yaml(composed, resolve=True)}", *overlays, *flags]


def inline(flags: list[str]) -> list[str]:
    """Puts the content of a yaml in the place of its name for nested keys: `--model.decoder conf/decoder/dit_small.yaml`.

    jsonargparse would take the name, but reports a mistake inside the file as a loop of files.
    """
    flags = list(flags)
    for position, flag in enumerate(flags):
        key, equals, file = flag.partition("=")
        if not (key.startswith("--") and "." in key):
            continue
        if not equals and position + 1 < len(flags):
            file = flags[position + 1]
        if file.endswith((".yaml", ".yml")) and Path(file).is_file():
            check_overlay(file)
            content = json.dumps(yaml.safe_load(Path(file).read_text()))
            flags[position if equals else position + 1] = f"{key}={content}" if equals else content
    return flags


def compose_verb(verb: str, overrides: list[str]) -> DictConfig:
    """The configuration of `conf/<verb>.yaml` with overrides in Hydra's grammar.

    Raises:
        ConfigError: If Hydra refuses; the message names the nearest right name.
    """
    with conf(), short_errors(verb):
        composed = compose(verb, overrides)
    check_class_blocks(OmegaConf.to_container(composed, resolve=False))
    return composed


@contextmanager
def conf() -> Iterator[None]:
    """Lets Hydra read conf/."""
    if not CONF.is_dir():
        raise ConfigError(f"there is no {CONF}, which belongs to the package: install it again, `pip install .` in a clone")
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="mimicvideo"):
        yield


def groups() -> list[str]:
    """The groups that an override can choose from: the folders of conf/ with yaml files."""
    return sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")})


@contextmanager
def short_errors(verb: str) -> Iterator[None]:
    """Turns what Hydra raises into a ConfigError of one line that names the nearest right name."""
    try:
        yield
    except MissingConfigException as error:
        missing = str(error.missing_cfg_file)
        options = error.options or [path.stem for path in (CONF / missing).parent.glob("*.yaml")]
        raise ConfigError(f"there is no conf/{missing}.yaml{nearest(missing.rpartition('/')[2], options)}") from error
    except OverrideParseException as error:
        raise ConfigError(f"cannot read the override {error.override!r}: {str(error).splitlines()[0]}") from error
    except ConfigCompositionException as error:
        refused = re.search(r"Could not override '(.+?)'", str(error))
        key = refused[1] if refused else ""
        if "No match in the defaults list" in str(error):
            raise ConfigError(f"`{verb}` does not choose from a group {key!r}{nearest(key, groups())}") from error
        if refused:
            raise ConfigError(f"{key} is not a group of conf/, nor a key of the configuration{nearest(key, groups())}") from error
        raise ConfigError(" ".join(str(error).split())) from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def check_overlay(file: str) -> None:
    """Raises ConfigError if a `--config` outside conf/ does not exist, is not YAML, or is of a kind that only conf/ may hold."""
    if _is_content(file):
        return
    path = Path(file)
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.yaml")]
        raise ConfigError(f"--config: there is no file {file}{nearest(path.name, beside)}")
    try:
        config = yaml.safe_load(path.read_text())
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {file} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(config, dict) and "defaults" in config:
        raise ConfigError(f"{file}: `defaults` is Hydra's and only works in files under {CONF}")
    check_class_blocks(config)


def _is_content(file: str) -> bool:
    """Whether it is the configuration itself in place of a file's name: what `compose_argv` makes, which it may get again."""
    return "\n" in file or file.startswith("{")


def check_class_blocks(config: Any, key: str = "") -> None:
    """Raises ConfigError for a key beside `class_path`, which jsonargparse would refuse without naming it."""
    if isinstance(config, list):
        config = dict(enumerate(config))
    if not isinstance(config, dict):
        return
    for name in config if "class_path" in config else ():
        if name not in CLASS_KEYS:
            near = get_close_matches(str(name), CLASS_KEYS, n=1, cutoff=0.7) or [f"init_args.{name}"]
            raise ConfigError(f"{key}.{name} is not accepted beside class_path: did you mean '{key}.{near[0]}'?")
    for name, value in config.items():
        check_class_blocks(value, f"{key}.{name}".lstrip("."))
