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
    _add_simulated(kinds)


def _add_simulated(kinds: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add what needs no ranks: one process measures or simulates it."""
    balance = kinds.add_parser("balance", help="microbatches as they come against balanced ones")
    balance.add_argument("--steps", type=int, default=20, help="drawn per kind of data")
    balance.add_argument("--span", type=int, default=1, help="the balanced job's deferral_span")
    balance.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    balance.add_argument(
        "--measured",
        action="store_true",
        help="on ranks with a part of a core each",
    )
    balance.set_defaults(run=_balance)
    driver = kinds.add_parser("driver", help="planning of one step of a large job")
    driver.add_argument("--samples", type=int, default=4096, help="of a step")
    driver.add_argument("--ranks", type=int, default=1024, help="of the job, in multiples of 64")
    driver.add_argument(
        "--growth", action="store_true", help="many sizes, not --samples and --ranks"
    )
    driver.add_argument("--picture", help="draw how times grow into this file; with --growth")
    driver.add_argument("--microbatches", type=int, default=16)
    driver.add_argument("--span", type=int, default=1, help="the job's deferral_span")
    driver.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    driver.set_defaults(run=_driver)
    plan = kinds.add_parser("plan", help="seconds of planning, and samples that a plan needs")
    plan.add_argument("--draws", type=int, default=100, help="of each number of samples")
    plan.add_argument("--json", action="store_true", help="JSON is all that is ever printed")
    plan.add_argument(
        "--measured", action="store_true", help="the choice among all layouts, all run on 4 ranks"
    )
    plan.set_defaults(run=_plan)
    paper = kinds.add_parser("paper", help="the paper's directions, by the planner")
    paper.add_argument("--json", action="store_true", help="print JSON in place of tables")
    paper.set_defaults(run=_paper)


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
        SO400M_384,
        TINY_LANGUAGE,
        TINY_VISION,
        run_vlm,
        vlm_job,
    )

    sizes = (TINY_VISION, TINY_LANGUAGE) if arguments.tiny else (SO400M_384, QWEN_1_5B)
    result = run_vlm(vlm_job(*sizes, arguments.precision), arguments.blocks)
    print(json.dumps(result.as_dict()))
    return 0


def _balance(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.balance import run_balance
    from disagg_train.bench.balance_on_ranks import run_balance_on_ranks

    if arguments.measured:
        print(json.dumps(run_balance_on_ranks().as_dict()))
    else:
        print(json.dumps(run_balance(arguments.steps, span=arguments.span).as_dict()))
    return 0


def _driver(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.driver import GROWTH, draw_growth, run_driver

    step = arguments.microbatches, arguments.span
    if not arguments.growth:
        print(json.dumps(run_driver(arguments.samples, arguments.ranks, *step).as_dict()))
        return 0
    results = [run_driver(*sizes, *step) for sizes in GROWTH]
    print(json.dumps([result.as_dict() for result in results], indent=2))
    if arguments.picture:
        draw_growth(Path(arguments.picture), results)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from disagg_train.bench.plan import run_plan

    if arguments.measured:
        return _plan_on_ranks()
    print(json.dumps(run_plan(arguments.draws).as_dict()))
    return 0


def _plan_on_ranks() -> int:
    from disagg_train.bench.plan_on_ranks import as_dict, planned_jobs, run_plan_on_ranks

    def say(layout: object) -> None:
        print(layout, file=sys.stderr)

    print(json.dumps(as_dict([*run_plan_on_ranks(planned_jobs(), on_layout=say)])))
    return 0


def _paper(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from disagg_train.bench.paper import run_paper

    result = run_paper()
    if arguments.json:
        print(json.dumps(result.as_dict()))
    else:
        Console().print(*result.tables())
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
