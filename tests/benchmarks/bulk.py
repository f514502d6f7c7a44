"""Many calls: the overhead of `run_all` per call."""

from .clients import OURS
from .plan import Plan, log_failure
from .processes import Worker
from .table import Results, Row, at_most, cells, log, paired

_AT_ONCE = 64
_CALLS = {"openai": 300}
_PEER = "openai"
_CHECKPOINTED = "with a checkpoint"
_MAPPED = "run_all"


def bulk(plan: Plan) -> list[Row]:
    """Measure the CPU time per row, 64 at a time: `run_all` against `gather` over the same calls and over openai's."""
    log("bulk")
    results: Results = {}
    with Worker(OURS, plan.origin) as ours, Worker(_PEER, plan.origin) as peer:
        for repeat in range(plan.repeats):
            jobs = [
                (OURS, ours, "gathered", {}),
                (_MAPPED, ours, "mapped", {}),
                (_CHECKPOINTED, ours, "mapped", {"checkpoint": True}),
            ]
            if plan.peers and repeat < plan.peer_repeats:
                jobs.append((_PEER, peer, "gathered", {}))
            for name, worker, job, options in jobs:
                count = int(_CALLS.get(name, 2_000) * plan.scale)
                result = log_failure(name, worker.run(job, "plain", count=count, at_once=_AT_ONCE, **options))
                if "wall" in result:
                    result["rate"] = 1 / result["wall"]
                results.setdefault(name, []).append(result)
    gathered = {name: results[name] for name in (OURS, _PEER) if name in results}
    rows = [
        Row("64 calls at a time, gather: CPU us a row", cells(gathered, "cpu", 1e6, "{:.0f}")),
        Row("  rows/s", cells(gathered, "rate", 1, "{:.0f}")),
    ]
    for name in (_MAPPED, _CHECKPOINTED):
        shown = {OURS: results[name]}
        what = "  run_all" if name == _MAPPED else f"  run_all {name}"
        rows += [
            at_most(
                f"{what}: CPU us a row", paired(results, name, OURS), 1.15, cells=cells(shown, "cpu", 1e6, "{:.0f}")
            ),
            Row("  rows/s", cells(shown, "rate", 1, "{:.0f}")),
        ]
    return rows
