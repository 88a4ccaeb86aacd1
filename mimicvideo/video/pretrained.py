"""Where pretrained weights come from: a name becomes a folder, its files become checked modules and SHA-256 hashes."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mimicvideo import hub
from mimicvideo.hashes import known_sha256

Module = TypeVar("Module", bound=nn.Module)
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer")
PACKAGED = {"cosmos-tiny": Path(__file__).resolve().parents[1] / "assets" / "cosmos-tiny"}
MANIFEST = "manifest.json"

_HUB_ID = re.compile(r"(?!models/)[A-Za-z0-9][\w.-]*/[\w.-]+")  # nobody on the hub is called models, but folders are
_FILES = {
    "transformer": "config.json, diffusion_pytorch_model.safetensors (or its parts and their .index.json)",
    "vae": "config.json, diffusion_pytorch_model.safetensors",
    "text_encoder": "config.json, model.safetensors (or its parts and their .index.json)",
    "tokenizer": "tokenizer.json or spiece.model, and tokenizer_config.json",
}


def resolve(pretrained: str, revision: str | None = None, *, key: str = "pretrained", components: Sequence[str] = COMPONENTS) -> Path:
    """The folder with `transformer`, `vae`, `text_encoder` and `tokenizer` that `pretrained` names.

    Args:
        pretrained: "cosmos-tiny" (in the package), a folder, or a hub id, which alone is downloaded.
        revision: Branch, tag or commit of a hub id.
        key: What the user calls it.
        components: Those that are needed; no others are downloaded.

    Raises:
        FileNotFoundError: If there is no such folder, it lacks a component, or the hub cannot be reached.
    """
    folder = Path(pretrained).expanduser()
    if pretrained in PACKAGED:
        folder = PACKAGED[pretrained]
    elif _is_hub_id(pretrained):
        try:
            folder = hub.download(pretrained, revision, _wanted(components))
            if missing := _missing(folder, components):  # of an earlier download, of other components
                raise FileNotFoundError(f"the download in {folder} lacks {', '.join(missing)}")
        except Exception as error:  # of many kinds: lost connection, gated, full disk
            raise _not_given(pretrained, revision, error, key, components) from error
    if pretrained in PACKAGED and not folder.is_dir():
        raise FileNotFoundError(f"{key}={pretrained!r}: this installation lacks {folder}; install the package again, with its assets")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{key}={pretrained!r}: there is no folder {folder.absolute()}. Give a hub id such as "
            f"nvidia/Cosmos-Predict2-2B-Video2World, one of {sorted(PACKAGED)}, or {_layout(key, components)}"
        )
    if missing := _missing(folder, components):
        raise FileNotFoundError(
            f"{key}={pretrained!r}: {folder} is not a complete video model: it lacks {', '.join(missing)}. Put the diffusers-format "
            f"folders {', '.join(components)} there"
        )
    return folder


def check_source(pretrained: str, revision: str | None = None, *, key: str = "pretrained", components: Sequence[str] = COMPONENTS) -> None:
    """Raises what `resolve` would, within seconds and without a download."""
    if not _is_hub_id(pretrained):
        resolve(pretrained, key=key, components=components)
    elif error := hub.refusal(pretrained, revision):
        folder = hub.earlier_download(pretrained, revision, _wanted(components))
        if folder is None or _missing(folder, components):
            raise _not_given(pretrained, revision, error, key, components) from error


def _missing(folder: Path, components: Sequence[str]) -> list[str]:
    return [name for name in components if not (folder / name).is_dir()]


def _is_hub_id(pretrained: str) -> bool:
    return pretrained not in PACKAGED and not Path(pretrained).expanduser().is_dir() and bool(_HUB_ID.fullmatch(pretrained))


def _wanted(components: Sequence[str]) -> list[str]:
    return [f"{name}/*" for name in components]


def _layout(key: str, components: Sequence[str]) -> str:
    files = "\n".join(f"    {f'FOLDER/{name}/':21} {_FILES[name]}" for name in components)
    return (
        f"put the model's diffusers-format folders {', '.join(components)} into a folder of this machine and set {key} to its path:\n"
        f"{files}" + "\n`mimicvideo import` makes such a folder of one of NVIDIA's .pt files." * ("transformer" in components)
    )


def _not_given(hub_id: str, revision: str | None, error: Exception, key: str, components: Sequence[str]) -> FileNotFoundError:
    version = f" in its revision {revision}" if revision else ""
    option = f" --revision {revision}" if revision else ""
    include = " ".join(f"--include '{pattern}'" for pattern in _wanted(components))
    return FileNotFoundError(
        f"{key}={hub_id!r}: there is no folder {Path.cwd() / hub_id}, and the hub did not give that model{version} "
        f"({type(error).__name__}: {_first_line(error)}). Either connect (for gated models accept the licence and set HF_TOKEN), or "
        f"{_layout(key, components)}\n"
        f"Where there is a connection, this writes them: hf download {hub_id}{option} {include} --local-dir FOLDER\n"
        "Predict2.5 has them in revisions only, such as revision=diffusers/base/post-trained."
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component, read from its index if it is sharded: those that diffusers or transformers reads.

    Raises:
        FileNotFoundError: If there are none or a shard is missing.
        ValueError: If there is a single file beside an index, or an index and its shards disagree.
    """
    name = "model.safetensors" if folder.name == "text_encoder" else "diffusion_pytorch_model.safetensors"
    single, index = folder / name, folder / f"{name}.index.json"
    if single.is_file() and index.is_file():
        raise ValueError(f"{folder} holds weights twice, {single.name} and the shards of {index.name}: remove those that are not meant")
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(index)
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
    raise FileNotFoundError(
        f"{folder} holds no weights: expected {name}, or its parts and {index.name}"
        + (f"; it has {', '.join(others[:5])}: save it with save_pretrained, as safetensors and without a variant" if others else "")
    )


def _shards(index: Path) -> list[Path]:
    """The files that an index names, once they hold exactly what it says of each."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise ValueError(f"{index} lacks weight_map, the file of each tensor: copy or download it again")
    shards = sorted({index.parent / name for name in places.values()})
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise FileNotFoundError(f"{index.parent} lacks {', '.join(missing)}, named in {index.name}: copy or download the folder again")
    found = {(key, shard.name) for shard in shards for key in tensor_shapes([shard])}
    if wrong := sorted({key for key, _ in found ^ set(places.items())}):
        raise ValueError(
            f"{index} and its files disagree about where {len(wrong)} tensors are: {', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)}; "
            "copy or download the folder again"
        )
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Parses a JSON file of named entries; an absent or damaged one is reported by its name."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: copy or download the folder again") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}): copy or download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected entries by name: copy or download it again")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises ValueError if it is truncated or no safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({_first_line(error)}): copy or download it again") from error


def tensor_shapes(paths: Iterable[Path]) -> dict[str, torch.Size]:
    """Shapes by key, from the headers alone, which also tells whether each file has its full length."""
    shapes = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                shapes |= {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is truncated or damaged ({_first_line(error)}): copy or download it again") from error
    return shapes


def check_shapes(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], where: object, remedy: str) -> None:
    """Raises ValueError, naming keys and shapes, unless both have the same keys with the same shapes."""
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {tuple(found[key])} instead of {tuple(expected[key])}"
            for key in expected
            if key in found and found[key] != expected[key]
        ],
    }
    texts = [f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}" for kind, keys in problems.items() if keys]
    if texts:
        raise ValueError(f"{where} does not fit. Tensors {'; '.join(texts)}. {remedy}")


def load_module(cls: type[Module], folder: Path, dtype: torch.dtype) -> Module:
    """Loads a diffusers or transformers model whose files hold exactly its tensors.

    Raises:
        FileNotFoundError: If config or weights are missing.
        ValueError: If a file is truncated or differs from its SHA-256 in the model's manifest.json, or a key is missing,
            unexpected or of another shape: such a model would otherwise start with random weights, silently.
    """
    config, files = read_json(folder / "config.json"), weight_files(folder)
    library: Any = cls
    try:
        with torch.device("meta"):
            blank = library.from_config(config) if hasattr(cls, "from_config") else library(library.config_class.from_dict(config))
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is no config.json of {cls.__name__}: {_first_line(error)}; copy or download it again"
        ) from error
    expected = {key: value.shape for key, value in blank.state_dict().items()}
    found = tensor_shapes(files)
    tied = set(getattr(blank, "_tied_weights_keys", None) or {})  # stored once under another name
    expected = {key: shape for key, shape in expected.items() if key not in tied or key in found}
    check_shapes(
        found,
        expected,
        folder,
        "If it is incomplete copy or download it again. Or is it another architecture, or saved with an adapter attached?",
    )
    check_files(folder)
    return library.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True).eval()


def check_files(folder: Path) -> None:
    """Compares the files of one component, hidden ones apart, with the manifest.json of its model, if it has one.

    Raises:
        FileNotFoundError: If a listed file is missing.
        ValueError: If a file is not listed or differs from its SHA-256, or the manifest is none.
    """
    manifest = folder.parent / MANIFEST
    if not manifest.is_file():
        return
    recorded = read_json(manifest).get("sha256")
    if not isinstance(recorded, dict):
        raise ValueError(f"{manifest} is no manifest: it lacks sha256, the hash of each file; copy or download it again")
    listed = {folder.parent / name: digest for name, digest in recorded.items() if name.startswith(f"{folder.name}/")}
    there = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if unlisted := [path for path in there if path not in listed]:
        raise ValueError(
            f"{unlisted[0]} is not among the files whose SHA-256 {manifest} records: remove it, or copy or download the folder again"
        )
    for file, digest in listed.items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, though {manifest} lists it: copy or download the folder again")
        if digest != known_sha256(file):
            raise ValueError(f"{file} differs from the SHA-256 that {manifest} records for it: copy or download it again")


def copy_component(folder: Path, target: Path) -> None:
    """Copies a component whose files are whole: of full length, and as its model's manifest.json says.

    Raises:
        FileNotFoundError: If weights or a listed file are missing.
        ValueError: If a file is truncated or differs from its SHA-256.
    """
    tensor_shapes([] if folder.name == "tokenizer" else weight_files(folder))
    check_files(folder)
    shutil.copytree(folder, target)


def write_manifest(folder: Path) -> None:
    """Records the SHA-256 of every file of the model's components in its manifest.json."""
    files = sorted(path for name in COMPONENTS for path in (folder / name).rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): known_sha256(path) for path in files}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}, indent=2) + "\n")


def component_hash(folder: Path, *, with_weights: bool = True) -> str:
    """SHA-256 over the weights of one component and those entries of its config.json that describe the network."""
    config = {key: value for key, value in read_json(folder / "config.json").items() if not key.startswith("_")}
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "transformers_version")}
    parts = [json.dumps(config, sort_keys=True)]
    if with_weights:
        parts += [known_sha256(path) for path in weight_files(folder)]
    return text_hash(*parts)


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over a tokenizer's vocabulary files."""
    files = [folder / name for name in ("tokenizer.json", "spiece.model") if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} holds no tokenizer: expected tokenizer.json or spiece.model")
    return text_hash(*(known_sha256(path) for path in files))


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 over a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def text_hash(*parts: str) -> str:
    """SHA-256 over strings, with their borders."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
