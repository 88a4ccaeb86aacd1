"""`mimicvideo VERB`: finds the verb, which then imports its own stack and no other, so that help answers at once."""

import os
import signal
import sys
import traceback
from pathlib import Path

from mimicvideo.messages import ConfigError, nearest
from mimicvideo.shipped import with_shipped

VERBS = {
    "demos": "scripted experts generate demonstrations in a benchmark",
    "fit": "trains: stage 1 adapts the video model, stage 2 learns the action decoder",
    "validate": "computes the validation losses of a checkpoint",
    "test": "the same on the test split",
    "predict": "action chunks for the windows that validate takes, in <run_dir>/predictions.safetensors",
    "rollout": "runs a policy in a benchmark: success rates, latency, videos",
    "report": "one self-contained HTML page of a study: success table, curves, videos",
    "audit": "looks at every episode of a training's datasets: samples, faults, a quarantine list, a report",
    "cache": "writes the latents and text embeddings of an experiment of fit before it trains, in several processes",
    "check": "checks a configuration of fit and counts its parameters, without a GPU or weights",
    "captions": "a vision-language model writes a long description of every episode of a data set",
    "export": "a policy's checkpoint becomes a folder to give away, with model card and hashes",
    "fuse": "a video model and its stage-1 adapter become one diffusers folder that backbone.pretrained takes",
    "import": "NVIDIA's native video checkpoints, and mimic-video's, become folders that backbone.pretrained takes",
    "import-decoder": "mimic-video's action decoder and statistics become such a folder",
    "sweep": "runs a verb once for each combination of values, or lets an optimiser choose them",
}

WRITES_A_FOLDER = ("export", "fuse", "import", "import-decoder")
EXPECTED = (ValueError, ArithmeticError, RuntimeError, OSError, ImportError)  # what our messages come with

HELP = f"""usage: mimicvideo VERB [options]     (`mimicvideo VERB --help` lists a verb's options)

verbs:
{chr(10).join(f"  {verb:14} {does}" for verb, does in VERBS.items())}

examples:
  mimicvideo demos --config conf/demos.yaml --root datasets/mt10
  mimicvideo fit --config conf/experiment/quickstart_video.yaml --trainer.max_steps=500 --run_dir=runs/video
  mimicvideo fit --config conf/experiment/quickstart_action.yaml --model.block=5 --run_dir=runs/action
  mimicvideo check --config conf/experiment/libero_goal_action.yaml
  mimicvideo audit --config conf/experiment/quickstart_action.yaml --num_workers 2 --out runs/audit
  mimicvideo rollout --config conf/rollout.yaml --policy runs/action/checkpoints/last.ckpt
  mimicvideo sweep fit experiment=quickstart_action model.init_args.block=1,3,5 hydra/launcher=joblib
"""


def main() -> None:
    """Runs the verb that the command line names; exits with status 2 if the line is wrong, 1 if the work fails."""
    argv = with_shipped(sys.argv[1:])
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if verb == "--version":
        from importlib.metadata import version

        print(f"mimicvideo {version('mimicvideo')}")
        return
    try:
        if verb not in VERBS:
            raise ConfigError(f"there is no verb {verb!r}{nearest(verb, VERBS)}")
        run(verb, argv)
    except ConfigError as error:
        sys.exit(_fail(verb, error, status=2))
    except Exception as error:
        ours = _raised_by_us(error) or _full_disk(error)
        status = 2 if verb == "audit" else 1  # 1 of an audit says that something was found
        if ours is None or os.environ.get("MIMICVIDEO_TRACEBACK"):
            if verb != "audit":
                raise
            traceback.print_exc()
            sys.exit(status)
        sys.exit(_fail(verb, ours, status, hint="(MIMICVIDEO_TRACEBACK=1 shows where this was raised)"))


def run(verb: str, argv: list[str]) -> None:
    """Imports the verb's own stack and runs it."""
    if verb == "sweep":
        from mimicvideo.sweep import sweep

        sweep(argv[1:])
    elif verb == "check":
        from mimicvideo.compose import compose_argv

        argv = compose_argv(["fit", *argv[1:]])
        from mimicvideo.check import print_sizes

        print_sizes(argv[1:])
    elif verb == "audit":
        from mimicvideo.audit.command import audit
        from mimicvideo.check import training_data

        sys.exit(audit(argv[1:], training_data))
    elif verb == "cache":
        from mimicvideo.compose import compose_argv

        argv = compose_argv(["fit", *argv[1:]])
        from mimicvideo.cache import cache

        cache(argv[1:])
    elif verb in ("fit", "validate", "test", "predict"):
        from mimicvideo.compose import compose_argv

        argv = compose_argv(argv)  # what Hydra refuses is refused before torch is imported
        from mimicvideo.cli import MimicVideoCLI

        MimicVideoCLI(args=argv)
    else:
        from mimicvideo.functions import run_function

        if verb in WRITES_A_FOLDER:  # a terminated one removes what is half written, as an interrupted one does
            signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
        run_function(argv)


def _raised_by_us(error: BaseException | None) -> BaseException | None:
    """The innermost error that a line of this package raised, whose message is written for the user; None if there is none.

    jsonargparse wraps what constructors raise, so that the chain of causes is searched. What the interpreter raised in such a line, as in
    `open(path)`, counts only if no `raise` of ours says it better. Other kinds are defects: no message of ours explains them.
    """
    package, stated, other = Path(__file__).resolve().parent, None, None
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, EXPECTED) and frames and package in Path(frames[-1].filename).resolve().parents:
            if (frames[-1].line or "").startswith("raise "):
                stated = error
            else:
                other = error
        error = error.__cause__ or error.__context__
    return stated or other


def _full_disk(error: BaseException | None) -> OSError | None:
    """What to tell if the disk was full where a library wrote: loggers, pictures, videos; None if something else was wrong."""
    from mimicvideo.atomic import full_disk

    if (found := full_disk(error)) is None:
        return None
    where = f" for {found.filename}" if found.filename else ""
    advice = "free some space, or choose another place. Checkpoints that were written are whole: training can be resumed from the last"
    return OSError(f"{found.strerror}{where}: {advice}")


def _fail(verb: str, error: BaseException, status: int, hint: str = "") -> int:
    sys.stderr.write(f"mimicvideo {verb}: error: {error}\n" + (f"{hint}\n" if hint else ""))
    return status


if __name__ == "__main__":
    main()
