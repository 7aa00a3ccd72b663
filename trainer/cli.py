"""The trainer's commands, train, doctor, export-model and serve: flags in, one JSON line out."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import msgspec

from engine.command import Command, config_arguments, names_in, path_of, set_argument, share, whole
from engine.config import load
from engine.errors import MissingError, TrainError
from engine.standard_output import tell
from trainer import ranks
from trainer.launch import launch
from trainer.roles import ROLES


def _arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--data",
        type=path_of,
        required=True,
        metavar="RUN",
        help="run whose kept rows are learnt from, or a JSONL file",
    )
    parser.add_argument("--out", type=path_of, metavar="FOLDER", help="where results go (default: RUN, if it is a run)")
    parser.add_argument(
        "--role", choices=list(ROLES), default="student", help="teacher: train teacher.model, on gold rows"
    )
    parser.add_argument(
        "--processes", type=whole(1), metavar="N", help="train on N GPUs of this machine (train.processes)"
    )
    parser.add_argument("--check", action="store_true", help="only check rows, template and tokens; needs no GPU")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.processes is not None:
        args.overrides = [*args.overrides, f"train.processes={args.processes}"]
    # Here, so that asking for help loads no more than the flags above.
    from trainer.train import check, train

    config = load(Path(args.config), args.overrides)
    role = ROLES[args.role]
    if args.check:
        return check(config, args.data, role)
    if args.out is None and args.data.is_file():
        raise MissingError(f"--data {args.data} is a file; say with --out which folder the results go to")
    out = args.out or args.data
    if config.train.processes > 1 and not ranks.launched():
        changes = [argument for override in args.overrides for argument in ("--set", override)]
        command = ["train", args.config, "--data", str(args.data), "--out", str(out), "--role", args.role, *changes]
        return launch(command, config.train.processes)
    ranks.heed_launcher()
    result: dict[str, Any] = msgspec.to_builtins(train(config, args.data, out, role))
    return result if ranks.is_main() else {}


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser)
    parser.add_argument(
        "--out", type=path_of, default=Path(), metavar="FOLDER", help="where the run is to be (its disk)"
    )


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from trainer.doctor import examine

    found = examine(load(Path(args.config), args.overrides), args.out)
    if found["fail"]:
        tell(found)
        fail = "1 check fails" if found["fail"] == 1 else f"{found['fail']} checks fail"
        raise TrainError(f"{fail}; mend that before anything is started")
    return found


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    from trainer.forms import FORMS

    parser.add_argument("run", type=path_of, metavar="RUN", help="folder with the trained student")
    parser.add_argument("--to", required=True, metavar="FORMS", help=f"some of {','.join(FORMS)}")
    parser.add_argument("--out", type=path_of, metavar="FOLDER", help="gets a folder a form; default: RUN/models")
    parser.add_argument("--items", type=whole(1), default=100, metavar="N", help="held-out questions; default: 100")
    parser.add_argument("--no-verify", action="store_true", help="do not compare answers with the student's")
    parser.add_argument(
        "--engine", choices=("auto", "vllm", "transformers"), default="auto", help="what answers; default: auto"
    )
    set_argument(parser)


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from trainer.export_model import Request, export_model

    request = Request(
        to=names_in(args.to),
        out=args.out,
        items=args.items,
        verify=not args.no_verify,
        engine=args.engine,
        overrides=args.overrides,
    )
    return export_model(args.run, request)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {str(error).lower()}") from None


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    from trainer.serve import GPU_SHARE, PORT

    parser.add_argument("run", type=path_of, metavar="RUN", help="folder with the trained student")
    parser.add_argument("--form", default="", metavar="FORM", help="an exported form; default: what training left")
    parser.add_argument("--port", type=whole(1, 65535), default=PORT, help=f"default: {PORT}")
    parser.add_argument(
        "--gpu-memory-utilization",
        type=share,
        default=GPU_SHARE,
        metavar="SHARE",
        help=f"share of the card; default: {GPU_SHARE}",
    )
    parser.add_argument("--print", action="store_true", help="print the command and start nothing")
    parser.add_argument("--smoke", action="store_true", help="start it, compare some answers with offline ones, stop")
    parser.add_argument(
        "--vllm-args", type=_words, default=[], metavar="TEXT", help="more for vLLM, as --vllm-args='--x y'"
    )
    set_argument(parser)


def _serve(args: argparse.Namespace) -> dict[str, Any]:
    from trainer.serve import Wish, has_program, is_cpu_build, serve
    from trainer.smoke import smoke
    from trainer.student import read_student

    wish = Wish(
        form=args.form,
        port=args.port,
        gpu_share=args.gpu_memory_utilization,
        cpu=is_cpu_build(),
        program=has_program(),
        extra=args.vllm_args,
    )
    student = read_student(args.run, args.overrides)
    return smoke(student, wish) if args.smoke else serve(student, wish, only_print=args.print)


COMMANDS = {
    "train": Command(_arguments, _run),
    "doctor": Command(_doctor_arguments, _doctor),
    "export-model": Command(_export_arguments, _export),
    "serve": Command(_serve_arguments, _serve),
}
