"""Short answers to mistyped keys and values: what was given, where, and the nearest right name."""

import difflib
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from mimicvideo.shipped import CONF

NO_CLASS = re.compile(r"module '\S+' has no attribute '\w+'|No module named '\S+'")
NOT_THE_CLASS = re.compile(r"Import path \S+ does not correspond to a subclass of \w+|Expected a dot import path string: \S+")
PLAIN_TYPE = re.compile(r"Subtypes: .*<class '(?:int|float|bool|str)'>")

TRAINING = ("fit.", "validate.", "test.", "predict.")  # what keys of LightningCLI's verbs start with


class ConfigError(Exception):
    """What was asked for cannot be run; the message is all that the user needs to see."""


def nearest(word: str, names: Iterable[str]) -> str:
    """`: did you mean 'tau'?`, or all the names where none is similar."""
    names = sorted(set(names))
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.5):
        return f": did you mean {close[0]!r}?"
    return f" (there is {', '.join(names)})" if names else ""


def similar(word: str, names: Iterable[str]) -> str:
    """` (did you mean 'tau'?)` for the middle of a sentence; nothing where no name is similar."""
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def nearest_key(key: str, keys: Iterable[str]) -> str:
    """Like `nearest` for a dotted key: finds the first part that leads nowhere and offers what could stand there."""
    keys, parts = list(keys), key.split(".")
    for depth in range(len(parts)):
        known = {".".join(name.split(".")[: depth + 1]) for name in keys if name.split(".")[:depth] == parts[:depth]}
        if known and (start := ".".join(parts[: depth + 1])) not in known:
            return nearest(start, known)
    return ""


def nearest_class(class_path: str) -> str:
    """Like `nearest` for `package.module.Class`: looks into the deepest module of the path that exists."""
    module_name, _, name = class_path.rpartition(".")
    while module_name:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            module_name, _, name = module_name.rpartition(".")
            continue
        names = [key for key, value in vars(module).items() if isinstance(value, type)]
        names += [entry.name for entry in pkgutil.iter_modules(getattr(module, "__path__", []))]
        return nearest(name, [other for other in names if not other.startswith("_")])
    return ""


def _fields(text: str) -> list[str]:
    """The fields of the typed dictionaries among the classes that a message names."""
    paths = [path.rpartition(".") for path in re.findall(r"<class '([\w.]+)'>", text)]
    kinds = [getattr(sys.modules.get(module), name, None) for module, _, name in paths]
    return [field for kind in kinds for field in getattr(kind, "__annotations__", {})]


class ShortErrors:
    """Mixed into a jsonargparse parser: one short message in place of usage, tips and the contents of whole unions."""

    prog: str
    exit_on_error: bool
    _actions: list[Any]
    _subcommands_action: Any

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with status 2. A parser of a class's arguments raises: its parser will print."""
        parser = getattr(ex, "subcommand_parser", None) or self
        keys = _keys(parser)
        if refused := re.fullmatch(r"(?:.* does not accept option|Option) '(\S+)'(?: is not accepted)?", message):
            message = f"Option '{refused[1]}' is not accepted{nearest_key(refused[1], keys)}"
        if not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        sys.stderr.write(f"{parser.prog.replace(' [options]', '')}: error: {shorten(message, keys)}\n")
        sys.exit(2)


def _keys(parser: Any) -> list[str]:
    """Every key that a parser takes, those of its verbs included."""
    options = [option[2:] for action in parser._actions for option in action.option_strings if option.startswith("--")]
    keys = [option for option in options if not re.search(r"(^|\.)(help|print_config|print_shtab)$|\+$", option)]
    verbs = parser._subcommands_action
    for verb in verbs._name_parser_map.values() if verbs else []:
        keys += _keys(verb)
    return keys


def shorten(message: str, keys: Iterable[str] = ()) -> str:
    """One short message out of jsonargparse's nested one: the key in full, what was expected and what was given.

    Args:
        message: Such as `Parser key "model": ... Problem with given class_path 'A': ... Parser key "tau": Expected a ...`.
        keys: What the parser takes, to name the nearest for an option that it does not know.
    """
    if unknown := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return _unrecognized(unknown[1].split(), keys)
    if missing := re.match(r"the following arguments are required: (.*)", message):
        names = [name.split(".", 1)[1] if name.startswith(TRAINING) else name for name in missing[1].split(", ")]
        hint = ": choose an experiment, --config conf/experiment/NAME.yaml" if names == ["model"] else ""
        return f"{', '.join(f'--{name}' for name in names)} must be given{hint}"
    if file := re.search(r'Unable to load config "(.*)"', message):
        beside = [other.name for other in Path(file[1]).parent.glob("*.yaml")]
        return f"there is no file {file[1]}{nearest(Path(file[1]).name, beside)}"
    key, leaf = _key_and_leaf(message)
    refused = re.search(r"Option '(\S+)' is not accepted(: did you mean [^?]*\?| \(there is [^)]*\))?", message)
    if refused:
        factory = re.match(r"\. Got value: Namespace\(class_path='(\S+?)'", message[refused.end() :])
        owners = [factory[1]] if factory else re.findall(r"given class_path '(\S+?)'", message[: refused.start()])
        where = f"{key}.init_args.{refused[1]}" if key else refused[1]
        return f"{where} is not accepted{f' by {owners[-1]}' if owners else ''}{refused[2] or ''}"
    if unexpected := re.search(r"Unexpected keys: \{'(\w+)'", leaf):
        return f"{key}.{unexpected[1]} is not accepted{nearest(unexpected[1], _fields(leaf))}"
    if problem := NO_CLASS.search(leaf):
        class_path = ".".join(re.findall(r"'(.+?)'", problem[0]))
        return f"{key}: {problem[0]}{nearest_class(class_path)}"
    if (problem := NOT_THE_CLASS.search(leaf)) and not PLAIN_TYPE.search(leaf):
        text = problem[0].replace("Expected a dot import path string:", "there is no class")
        return f"{key}: {text}{'' if 'subclass' in text else f' (write {_file_of_conf(text.split()[-1])})'}"
    return f"{key}: {_expected(leaf)}" if key else _expected(leaf)


def _file_of_conf(name: str) -> str:
    """How to choose a member of a group of conf/ by its name; of other names, how classes are written."""
    files = CONF.glob(f"*/{name}.yaml") if re.fullmatch(r"\w+", name) else ()
    return next((f"--config conf/{file.relative_to(CONF)}" for file in files), "package.module.Class")


def _unrecognized(arguments: list[str], keys: Iterable[str]) -> str:
    """The message for options that no parser knows; all that follow the first are left out."""
    option, keys = arguments[0], list(keys)
    if not option.startswith("-"):
        hint = " (key=value without dashes is the grammar of `mimicvideo sweep`; here it is --key=value)" if "=" in option else ""
        return f"unexpected argument {option!r}{hint}"
    key = option.split("=")[0].lstrip("-")
    if re.fullmatch(r"\w+", key) and (CONF / key).is_dir():
        return f"--{key} is not accepted: a member of the group is chosen with --config conf/{key}/NAME.yaml (in a sweep: {key}=NAME)"
    return f"--{key} is not accepted{nearest_key(key, keys)}"


def _key_and_leaf(message: str) -> tuple[str, str]:
    """The full key of the innermost problem and jsonargparse's text about it."""
    chain: list[str] = []
    indent, leaf = -1, message
    for line_match in re.finditer(r"^( *)(.*)$", message, re.MULTILINE):
        for found in re.finditer(r'Parser key "([^"]+)":?', line_match[2]):
            depth = len(line_match[1]) + found.start()
            if depth <= indent:  # another member of a union repeats the complaint
                return ".init_args.".join(chain), leaf
            if chain and (found[1] == chain[-1] or found[1].startswith(f"{chain[-1]}.")):
                chain.pop()  # a file given for a group repeats the group's name
            chain.append(found[1])
            indent, leaf = depth, message[line_match.start(2) + found.end() :]
    return ".init_args.".join(chain), leaf


def _expected(leaf: str) -> str:
    """`expected int, got 1.5`."""
    leaf = leaf.split(". Got value: Namespace(")[0]  # said again by the factory's type
    value, text = re.search(r"Given value: (.*)", leaf), " ".join(leaf.split())
    if single := re.search(r"Expected an? (.*?)\. Got value: (.*)$", leaf, re.MULTILINE):
        text = f"expected {single[1]}, got {single[2]!r}{_nearest_choice(single[1], single[2])}"
    elif value and (unions := re.findall(r"Subtypes: \[(.*)\]\n", leaf)):  # the innermost union is the last
        text = f"expected one of {unions[-1]}, got {value[1]!r}{_nearest_choice(unions[-1], value[1])}"
    text = re.sub(r"<class '(?:builtins\.)?(?:[\w.]*\.)?(\w+)'>", r"\1", text).replace("NoneType", "None").replace("typing.", "")
    return text if len(text) < 400 else f"{text[:400]} …"


def _nearest_choice(types: str, given: str) -> str:
    """For `Literal['a', 'b']`, alone or in a union, whose text has listed them all."""
    hint = nearest(given, re.findall(r"'([^']*)'", " ".join(re.findall(r"Literal\[([^]]*)\]", types))))
    return hint if hint.startswith(":") else ""
