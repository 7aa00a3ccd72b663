"""Start: the model that training starts from: as it is, cut out of a bigger one, or trained by `sft` before.

Promises that where several processes train together one of them cuts, and the others find it done.
"""

from __future__ import annotations

from pathlib import Path

from engine.config import Config
from engine.models import resolve_model
from trainer import done, ranks
from trainer.done import Done
from trainer.job import Start
from trainer.prepare import Prepared
from trainer.prune import prune
from trainer.ranks import note


def start_model(config: Config, prepared: Prepared, out: Path) -> Start:
    """Return the model that training starts from; with init = prune it is cut first."""
    model = resolve_model(config.student.model, key="student.model")
    if config.student.init == "model":
        return Start(model, config.student.model)
    layers = _cut(config, model, prepared, out / done.UNTRAINED) if ranks.is_main() else ()
    ranks.wait()
    return Start(str(out / done.UNTRAINED), done.UNTRAINED, layers)


def start_after(before: Done, config: Config, out: Path) -> Start:
    """Return the student of an earlier training, in the folder `out`/sft, to go on with."""
    folder = out / done.SFT
    if before.untrained == done.UNTRAINED:
        untrained, base = f"{done.SFT}/{done.UNTRAINED}", str(folder / done.UNTRAINED)
    else:
        untrained, base = before.untrained, resolve_model(config.student.model, key="student.model")
    if before.adapter:
        return Start(base, untrained, before.layers, str(folder / before.adapter))
    return Start(str(folder / before.student), untrained, before.layers)


def _cut(config: Config, model: str, prepared: Prepared, target: Path) -> tuple[int, ...]:
    by_importance = config.student.layers_by == "importance"
    rows = [row.input_ids for row in prepared.train] if by_importance else None
    cut = prune(model, target, config.student.layers, rows)
    note(
        f"prune  {len(cut.layers)} of {cut.of_layers} layers ({', '.join(map(str, cut.layers))}), "
        f"{cut.parameters / 1e6:.1f} of {cut.of_parameters / 1e6:.1f} M parameters"
    )
    if cut.influence:
        note("prune  influence by layer: " + " ".join(f"{value:.3f}" for value in cut.influence))
    return cut.layers
