"""The steps of `fit_budget`: corners measured, the rest predicted, the best few tried, the winner made.

Level: outside.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_compress.errors import HfCompressError, UnsupportedError
from hf_compress.recipes.progress import say
from hf_compress.recipes.recipe import write_json
from hf_compress.search.budget_report import Outlook
from hf_compress.search.candidate import Candidate, Cutter, candidates, write
from hf_compress.search.config import BudgetConfig
from hf_compress.search.forms import FORMS
from hf_compress.search.limits import LIMITS, closest, excess, limits_of, missed
from hf_compress.search.measured import measure_folders, signed_score
from hf_compress.search.table import Table, corners
from hf_compress.search.train import steps_in, train

# For all finalists, of the time that is left then; for the winner at least, of the whole time.
_SHARE_OF_FINALISTS, _SHARE_OF_WINNER = 0.4, 0.2
# Seconds of cutting and training a finalist, below which it would tell nothing.
_SHORTEST = 30.0
# Seconds kept back for writing and measuring.
_RESERVE = 90.0
# Samples that show static quantization its ranges, and on which losses are measured.
_CALIBRATION, _FOR_LOSSES = 256, 128
# A candidate is looked at if it is predicted to be at most so much over: predictions are not exact.
_SLACK = 1.03


class Fitting:
    """The steps of one search in its folder; each is done once, and its result and seconds are kept.

    Args:
        folder: of the search.
        cutter: of the model.
        config: the budget.
        forms: by name.
    """

    def __init__(self, folder: Path, cutter: Cutter, config: BudgetConfig, forms: Mapping[str, Any]) -> None:
        self.folder, self.cutter, self.config, self.forms = folder, cutter, config, dict(forms)
        self.built: dict[Candidate, Mapping[str, float]] = {}
        self._cuts: dict[tuple[Candidate, str], Any] = {}

    def choose(self) -> tuple[Candidate, dict[str, float], list[Outlook]]:
        """Return the candidate that was made, the absolute limits, and what was expected of all candidates.

        Raises:
            UnsupportedError: if none is predicted to keep to the budget.
        """
        table = self.table()
        every = candidates(self.cutter, self.forms)
        dense = self.once("dense", self._dense)
        limits = limits_of(self.config, dense)
        fitting = [c for c in every if excess(table, c, limits) <= _SLACK]
        say(f"{len(fitting)} of {len(every)} candidates are predicted to keep to the budget")
        if not fitting:
            raise UnsupportedError(closest(table, every, limits))
        losses = self.once("losses", self._losses, sorted({c.form for c in fitting}))
        ranked = sorted(fitting, key=lambda c: self._expected(c, losses))
        seconds = self.once("plan", self._plan)
        finalists = self._finalists(ranked, len(seconds))
        scores = self._tried(finalists, seconds) if len(finalists) > 1 else {}
        candidate = self._finished(sorted(finalists, key=lambda c: -scores.get(c, 0.0)))

        def outlook(c: Candidate) -> Outlook:
            predicted = {what: table.predict(c, what) for what in LIMITS.values()}
            return Outlook(
                c,
                self._expected(c, losses),
                predicted,
                self.built.get(c) or table.measured.get(c),
                c in fitting,
                scores.get(c),
            )

        return candidate, limits, [outlook(c) for c in every if c.form in losses["form"]]

    def once(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a step, from its file if it was done before."""
        mark = self.folder / "state" / f"{name}.json"
        if not mark.is_file():
            started = time.monotonic()
            result = call(*arguments)
            write_json(mark, {"seconds": round(time.monotonic() - started, 1), "result": result})
        return json.loads(mark.read_text(encoding="utf-8"))["result"]

    @property
    def seconds_left(self) -> float:
        """Seconds of the time that are not used up, in this process or an earlier one."""
        # The steps are counted within what asks for them.
        marks = (m for m in (self.folder / "state").glob("*.json") if not m.name.startswith("steps-"))
        return 60 * self.config.minutes - sum(json.loads(m.read_text(encoding="utf-8"))["seconds"] for m in marks)

    def table(self) -> Table:
        """Return what the measured corners of each form say of the rest; forms that refuse the model are dropped."""
        return Table(self._measured(candidates(self.cutter, self.forms)), self.cutter.layers)

    def measure(self, chosen: Sequence[Candidate]) -> list[dict[str, float]]:
        """Build candidates without training and measure them in turn: "bytes", "parameters" and "latency"."""
        for candidate in chosen:
            self.once(f"corner-{candidate.folder_name}", self._build, candidate)
        return self._measure([self._corner(c) for c in chosen])

    def _measured(self, every: Sequence[Candidate]) -> dict[Candidate, dict[str, float]]:
        """Build the corners of every form and measure them all in turn; forms that refuse the model are left out."""
        chosen = []
        for form in list(self.forms):
            own = corners(form, every)
            reasons = [self.once(f"corner-{c.folder_name}", self._build, c) for c in own]
            if any(reasons):
                say(f"{form} is left out: {next(filter(None, reasons))}")
                del self.forms[form]
            else:
                chosen += own
        if not chosen:
            raise UnsupportedError("none of the forms takes this model; the lines above say why")
        places = [self._corner(c) for c in chosen]
        return dict(zip(chosen, self.once("corners", self._measure, places), strict=True))

    def _build(self, candidate: Candidate) -> str:
        """Write a candidate without training, which changes no size or time; returns why it cannot be done."""
        say(f"building {candidate}")
        _, task = self.cutter.parent(candidate)
        try:
            model = self.cutter.sketch(candidate, self._layout(candidate))
            self._write(candidate, model, task, self._corner(candidate))
        except HfCompressError as error:
            return str(error)
        return ""

    def _corner(self, candidate: Candidate) -> Path:
        return self.folder / "corners" / candidate.folder_name

    def _write(self, candidate: Candidate, model: Any, task: Any, folder: Path) -> None:
        batches = self.cutter.batches(task, min(_CALIBRATION, self.config.samples), 8)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write(candidate, self.forms[candidate.form], model, task, folder, batches)

    def _measure(self, folders: Sequence[Path]) -> list[dict[str, float]]:
        return measure_folders(folders, self.config.batch_size, self.config.length)

    def _make(self, candidate: Candidate, name: str, seconds: float) -> None:
        model = self._train(candidate, name, seconds)
        self._write(candidate, model, self.cutter.parent(candidate)[1], self.place(candidate))

    def _try(self, candidate: Candidate, name: str, seconds: float) -> float:
        model = self._train(candidate, name, seconds)
        return signed_score(self.cutter.parent(candidate)[1].evaluate(model, "validation"))

    def _dense(self) -> dict[str, float]:
        """Measure the model itself: what fractions are fractions of, and its quality on the validation split."""
        plain = self.folder / "dense"
        if not plain.exists():
            write(Candidate("float32"), FORMS.get("float32"), self.cutter.model, self.cutter.task, plain, ())
        return {**self._measure([plain])[0], **self.cutter.task.evaluate(self.cutter.model, "validation")}

    def _losses(self, forms: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return what each form, each part of the units and each depth does alone to the predictions, in nats.

        Args:
            forms: that may keep to the budget.
        """
        from hf_compress.measurement.load import load_measured
        from hf_compress.quantization.sensitivity import mean_divergence, predictions

        samples = min(_FOR_LOSSES, self.config.samples)
        batches = self.cutter.batches(self.cutter.task, samples)
        wanted = [list(predictions(self.cutter.model, batch)) for batch in batches]

        def loss(model: Any) -> float:
            return mean_divergence(model.eval(), batches, wanted)

        def cut(candidate: Candidate, layout: str) -> Any:
            return self.cutter.cut(candidate, layout, rounds=1, samples=samples)

        say(f"what {', '.join(forms)} do alone")
        found = {"form": {form: loss(load_measured(self._corner(Candidate(form)))) for form in forms}}
        every = candidates(self.cutter, self.forms)
        for form in forms:
            layout = self._layout(Candidate(form))
            if layout not in found:
                say(f"what fewer units do alone, {layout}")
                keeps = sorted({c.keep for c in every})
                found[layout] = {str(k): loss(cut(Candidate(form, k), layout)) for k in keeps}
        depths = sorted({c.layers for c in every if c.layers})
        say("what fewer layers do alone")
        found["layers"] = {str(n): loss(cut(Candidate(forms[0], 1.0, n), "uniform")) for n in depths}
        return found

    def _expected(self, candidate: Candidate, losses: Mapping[str, Mapping[str, float]]) -> float:
        units = losses[self._layout(candidate)][str(candidate.keep)]
        return losses["form"][candidate.form] + units + losses["layers"].get(str(candidate.layers), 0.0)

    def _layout(self, candidate: Candidate) -> str:
        return "per_layer" if self.forms[candidate.form].is_exported else "uniform"

    def _plan(self) -> list[float]:
        """Return the seconds of each finalist; of one alone where there is no time to compare."""
        left = _SHARE_OF_FINALISTS * max(0.0, self.seconds_left - _RESERVE)
        count = max(1, min(self.config.finalists, int(left / _SHORTEST)))
        return [left / count] * count

    def _finalists(self, ranked: Sequence[Candidate], count: int) -> list[Candidate]:
        """Return the first that keep to the budget when they are built."""
        chosen: list[Candidate] = []
        for candidate in ranked:
            # Forms of the same cut differ little by training.
            if len(chosen) < count and all(candidate.cut != c.cut for c in chosen):
                chosen += [candidate] if self._really_fits(candidate) else []
        if not chosen:
            raise UnsupportedError(
                f"the {len(ranked)} candidates that were predicted to keep to the budget are over it when they are "
                f"built, {ranked[0]} among them; allow a little more"
            )
        return chosen

    def _tried(self, chosen: Sequence[Candidate], times: Sequence[float]) -> dict[Candidate, float]:
        """Train each briefly; returns their scores on the validation split, larger is better."""
        scores = {}
        for candidate, seconds in zip(chosen, times, strict=False):
            name = f"tried-{candidate.folder_name}"
            scores[candidate] = self.once(name, self._try, candidate, name, seconds)
            say(f"{candidate}: {abs(scores[candidate]):.4f} after {seconds:.0f} s")
        return scores

    def _train(self, candidate: Candidate, name: str, seconds: float) -> Any:
        from transformers import set_seed

        teacher, task = self.cutter.parent(candidate)
        work = self.folder / "work" / name
        key = candidate.cut, self._layout(candidate)
        if key not in self._cuts:
            say(f"cutting {candidate}")
            started = time.monotonic()
            self._cuts[key] = self.cutter.cut(*key)
            seconds = max(seconds - (time.monotonic() - started), seconds / 3)
        set_seed(self.config.seed)
        model = copy.deepcopy(self._cuts[key])
        steps = self.once(f"steps-{name}", steps_in, seconds, model, teacher, task, work, self.config)
        return train(str(candidate), model, teacher, task, work, self.config, steps)

    def _really_fits(self, candidate: Candidate) -> bool:
        """Build a candidate and measure it, so that no time is spent on training what is too large or slow."""
        name = candidate.folder_name
        if self.once(f"corner-{name}", self._build, candidate):
            return False
        places = [self.folder / "dense", self._corner(candidate)]
        dense, found = self.once(f"built-{name}", self._measure, places)
        self.built[candidate] = found
        over = missed(self.config, found, dense)
        if over:
            say(f"{candidate}: over its limit in {', '.join(over)} when built")
        return not over

    def _finished(self, order: Sequence[Candidate]) -> Candidate:
        """Train the best candidate for the rest of the time and measure it; the next one if it is over its limits.

        Returns:
            The first that keeps to them; if none does before the time is up, the best.
        """
        for number, candidate in enumerate(order):
            if number and self.seconds_left <= 0:
                break
            name = f"final-{candidate.folder_name}"
            seconds = max(60 * self.config.minutes * _SHARE_OF_WINNER, self.seconds_left - _RESERVE)
            self.once(name, self._make, candidate, name, seconds)
            found = self.once(f"measured-{name}", self._measure, [self.folder / "dense", self.place(candidate)])
            say(f"{candidate}: " + ", ".join(f"{k} {v:,.4g}" for k, v in found[1].items()))
            over = missed(self.config, found[1], found[0])
            if not over:
                return candidate
            say(f"over its limit in {', '.join(over)}")
        return order[0]

    def place(self, candidate: Candidate) -> Path:
        """Return the folder of a candidate that is made."""
        return self.folder / "candidates" / candidate.folder_name
