"""``disagg-train bench``: its arguments. Heavy imports wait until a measurement needs them."""

import argparse
import contextlib
import json
import sys
from pathlib import Path


def add_bench_commands(bench: argparse.ArgumentParser) -> None:
    """Add what can be measured."""
    kinds = bench.add_subparsers(required=True, metavar="WHAT")
    boundary = kinds.add_parser("boundary", help="ours, Megatron's bridge and raw messages")
    boundary.add_argument("--src", default="tp=2,dp=1", help="layout of the source")
    boundary.add_argument("--dst", default="tp=2,dp=1", help="layout of the destination")
    boundary.add_argument("--tokens", type=int, default=4096)
    boundary.add_argument("--hidden", type=int, default=1024)
    boundary.add_argument("--rounds", type=int, default=20)
    boundary.add_argument(
        "--suite", action="store_true", help="measure the list of pairs, not --src and --dst"
    )
    boundary.add_argument("--output", help="also write the JSON to this file")
    boundary.add_argument("--json", action="store_true", help="print JSON only")
    boundary.set_defaults(run=_boundary)
    step = kinds.add_parser("step", help="the same op lists under Ray and without it")
    step.add_argument("--blocks", type=int, default=20, help="alternating ABBA blocks")
    step.add_argument(
        "--pp",
        action="store_true",
        help="the LLM in two pipeline stages; alone, also against Megatron's 1F1B",
    )
    step.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    step.set_defaults(run=_step)
    vlm = kinds.add_parser(
        "vlm", help="a vision-language model on one device, against transformers"
    )
    vlm.add_argument("--blocks", type=int, default=5, help="alternating ABBA blocks")
    vlm.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    vlm.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    vlm.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    vlm.set_defaults(run=_vlm)
    checkpoint = kinds.add_parser("checkpoint", help="what checkpoints and copies in memory cost")
    checkpoint.add_argument("--blocks", type=int, default=4, help="alternating ABBA blocks")
    checkpoint.add_argument("--layers", type=int, default=5, help="of each module: 21 MB of state")
    checkpoint.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    checkpoint.set_defaults(run=_checkpoint)
    recovery = kinds.add_parser("recovery", help="from a rank's death on, by group and by job")
    recovery.add_argument("--faults", type=int, default=3, help="of each kind, in alternation")
    recovery.add_argument("--layers", type=int, default=4, help="of each module: 21 MB of state")
    recovery.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    recovery.set_defaults(run=_recovery)


def _boundary(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.boundary import parse_layout, run_boundary

    if arguments.suite:
        return _boundary_suite(arguments)
    source, destination = parse_layout(arguments.src), parse_layout(arguments.dst)
    sizes = arguments.tokens, arguments.hidden, arguments.rounds
    text = json.dumps(run_boundary(source, destination, *sizes).as_dict())
    print(text)
    _write(text, arguments.output)
    return 0


def _boundary_suite(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from disagg_train.bench.boundary_suite import refusals, run_suite, suite_table, table_row

    console, table, results = Console(), suite_table(), []
    for result in run_suite(arguments.tokens, arguments.hidden, arguments.rounds):
        results.append(result)
        table.add_row(*table_row(result))
        text = json.dumps([each.as_dict() for each in results])
        _write(text, arguments.output)
        if not arguments.json:
            console.print(f"measured {result.source} -> {result.destination}", style="dim")
    if arguments.json:
        print(text)
    else:
        console.print(table, *refusals(results), sep="\n", markup=False)
    return 0


def _write(text: str, path: str | None) -> None:
    if path:
        Path(path).write_text(text + "\n")


def _step(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.jobs import disjoint_job
    from disagg_train.bench.pipeline import run_pipeline
    from disagg_train.bench.step import run_step

    blocks = arguments.blocks
    result = run_pipeline(blocks) if arguments.pp else run_step(disjoint_job(), blocks)
    print(json.dumps(result.as_dict()))
    return 0


def _vlm(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.vlm import (
        QWEN_1_5B,
        SO400M,
        TINY_LANGUAGE,
        TINY_VISION,
        run_vlm,
        vlm_job,
    )

    sizes = (TINY_VISION, TINY_LANGUAGE) if arguments.tiny else (SO400M, QWEN_1_5B)
    result = run_vlm(vlm_job(*sizes, arguments.precision), arguments.blocks)
    print(json.dumps(result.as_dict()))
    return 0


def _checkpoint(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.checkpoint import run_checkpoint

    print(json.dumps(run_checkpoint(arguments.blocks, arguments.layers).as_dict()))
    return 0


def _recovery(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.recovery import run_recovery

    with contextlib.redirect_stdout(sys.stderr):  # Ray tells of dead workers there
        result = run_recovery(arguments.faults, arguments.layers)
    print(json.dumps(result.as_dict()))
    return 0
