"""From runs to the rows of a comparison: a row a variant, of one task each, set against a baseline by pairs of the same seed."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite, nan
from pathlib import Path
from statistics import median

from fedsim.base.errors import FedsimError
from fedsim.report.columns import accuracy_of
from fedsim.report.comparison.ends import End, end_of, why_not
from fedsim.report.comparison.statistics import Paired, floor, holm, paired
from fedsim.report.settings import Reader, Settings, differing, named, only, task_of
from fedsim.report.style import variants_of
from fedsim.run.crossing import SPENT
from fedsim.run.folders import RunFolder


@dataclass(frozen=True)
class Row:
    """The finished runs of a variant, a seed each, and those left out with the reason; `task` is a letter where there are several tasks.

    `baseline` is the name of the row that it is set against ("" for none), `against` what the differences of final values between the
    seeds of both tell, `p` and `flip` its p values after Holm.
    """

    name: str
    settings: Settings
    ends: tuple[End, ...] = ()
    left: tuple[tuple[RunFolder, str], ...] = ()
    variant: str = ""
    task: str = ""
    baseline: str = ""
    against: Paired | None = None
    p: float = nan
    flip: float = nan

    def over(self, metric: str) -> list[float]:
        """The final values, one a seed, where they were measured and are finite."""
        return [value for end in self.ends if isfinite(value := end.value(metric))]

    def at_target(self, name: str) -> tuple[float, bool]:
        """The median over seeds of what had been spent at the target, and whether it is only known to be more: where it lies on misses.

        Then it is the median with what the missed runs had spent in all in their place. NaN without finished runs, or without a target.
        """
        aimed = [end for end in self.ends if end.run.info.get("target") is not None]
        spent = [end.reached(name) for end in aimed]
        if not spent or isfinite(median(spent)):
            return (median(spent) if spent else nan), False
        least = [value if isfinite(value) else end.value(SPENT[name]) for value, end in zip(spent, aimed, strict=True)]
        return (median(least), True) if all(map(isfinite, least)) else (nan, False)

    @property
    def runs(self) -> list[RunFolder]:
        """All of them, the finished ones first."""
        return [*(end.run for end in self.ends), *(run for run, _ in self.left)]

    @property
    def hits(self) -> int:
        return sum(end.hit is not None for end in self.ends)

    def pairs(self, base: "Row") -> list[tuple[End, End]]:
        """Ends of both at the seeds that both have, without those of other data."""
        others = self.other_data(base)
        return [(end, base.by_seed[seed]) for seed, end in self.by_seed.items() if seed in base.by_seed and seed not in others]

    def other_data(self, base: "Row") -> list[int]:
        """The seeds at which both say that they learn the same, from data that were not the same (a file has changed since)."""
        if any(key.startswith("task.") for key in differing([self.settings, base.settings])):
            return []
        hashes = {
            seed: (end.run.info.get("data"), base.by_seed[seed].run.info.get("data"))
            for seed, end in self.by_seed.items()
            if seed in base.by_seed
        }
        return [seed for seed, (own, other) in hashes.items() if own and other and own != other]

    @cached_property
    def by_seed(self) -> dict[int, End]:
        return {end.seed: end for end in self.ends}


@dataclass(frozen=True)
class Comparison:
    """Rows in order of appearance. `metric` is that of which differences are taken, `tasks` what each letter stands for, `differ` the
    settings in which rows differ, `broken` what was left out since its files are damaged."""

    rows: tuple[Row, ...]
    metric: str
    differ: tuple[str, ...] = ()
    tasks: Mapping[str, str] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    best: bool = False  # are best values asked for?

    @property
    def runs(self) -> list[RunFolder]:
        """The finished ones."""
        return [end.run for row in self.rows for end in row.ends]

    @property
    def several(self) -> list[tuple[Row, Paired]]:
        """The rows that more than one seed sets against their baseline."""
        return [(row, row.against) for row in self.rows if row.against and row.against.number > 1]

    @property
    def floor(self) -> float:
        """The least that a sign-flip p can be here, after Holm."""
        return min((floor(against.number, len(self.several)) for _, against in self.several), default=1.0)

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


Told = Callable[[int], None]


def compared(
    runs: Sequence[RunFolder], baseline: str | None = None, where: Sequence[str] = (), best: bool = False, told: Told = lambda done: None
) -> Comparison:
    """Runs beside each other; `where` are `key=value` texts that keep only runs with such settings; `told` hears how many are read.

    `baseline` is a row's name, a variant's (each row's is then the one that is most like it), or `key=value`; by default the first row.
    Raises FedsimError where a name, a key or a value is unknown, and where nothing is left to compare.
    """
    rows, broken = _filtered(*_rows(runs, best, told), where)
    keys = differing([row.settings for row in rows])
    rows, tasks = _marked(rows)
    metric = accuracy_of([end.run for row in rows for end in row.ends]) or "test/loss"
    return Comparison(tuple(_set_against(rows, baseline, metric)), metric, tuple(keys), tasks, tuple(broken), best)


def _rows(runs: Sequence[RunFolder], best: bool, told: Told) -> tuple[list[Row], list[str]]:
    """Runs of one variant whose questions differ in more than the seed are rows of their own."""
    whole, broken, why = list[RunFolder](), list[str](), dict[Path, str]()
    for done, run in enumerate(runs):
        try:
            why[run.path] = why_not(run)
            whole.append(run)
        except FedsimError as error:
            broken.append(str(error))
        told(done + 1)
    read, rows = Reader(), list[Row]()
    for variant in variants_of(whole):
        groups: dict[tuple[tuple[str, str], ...], list[RunFolder]] = {}
        for run in variant.runs:
            try:
                groups.setdefault(tuple(read(run, variant.name).items()), []).append(run)
            except FedsimError as error:
                broken.append(str(error))
        settings = [dict(question) for question in groups]
        keys = differing(settings)
        for one, members in zip(settings, groups.values(), strict=True):
            name = f"{variant.name}, {only(one, keys)}" if len(groups) > 1 else variant.name
            row, wrong = _row(Row(name, one, variant=str(members[0].info.get("variant") or "")), members, why, best)
            rows.append(row)
            broken += wrong
    return rows, broken


def _row(row: Row, members: Iterable[RunFolder], why: Mapping[Path, str], best: bool) -> tuple[Row, list[str]]:
    ends, left, broken = list[End](), list[tuple[RunFolder, str]](), list[str]()
    for run in members:
        try:
            if why[run.path]:
                left.append((run, why[run.path]))
            else:
                ends.append(end_of(run, best))
        except FedsimError as error:
            broken.append(str(error))
            left.append((run, "damaged"))
    return replace(row, ends=tuple(ends), left=tuple(left)), broken


def _filtered(rows: list[Row], broken: list[str], where: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Raises FedsimError where nothing is left."""
    for text in where:
        kept = [row for row in rows if _has(rows, text)(row)]
        if not kept:
            there = _values(rows, text.partition("=")[0])
            raise FedsimError(f"no run has {text}; there {'are' if len(there) > 1 else 'is'} {', '.join(there)}")
        rows = kept
    if not rows:
        raise FedsimError("\n".join(broken) or "no runs to compare")
    return rows, broken


def _has(rows: Sequence[Row], text: str) -> Callable[[Row], bool]:
    """Raises FedsimError for an unknown key."""
    written, _, value = text.partition("=")
    key = key_of(rows, written.strip())
    return lambda row: _plain(row.settings.get(key, "")) == _plain(value)


def key_of(rows: Sequence[Row], text: str) -> str:
    """The dotted key of a setting of any row. Raises FedsimError, with the nearest, where there is none."""
    try:
        return named(text, list(dict.fromkeys(key for row in rows for key in row.settings)))
    except ValueError as error:
        raise FedsimError(str(error)) from None


def _values(rows: Sequence[Row], text: str) -> list[str]:
    key = key_of(rows, text)
    return list(dict.fromkeys(row.settings[key] for row in rows if key in row.settings))


def _plain(text: str) -> str:
    """`1 MB/s` as `1MB/s`; numbers by their value."""
    bare = text.replace(" ", "")
    try:
        return repr(float(bare))
    except ValueError:
        return bare


def _marked(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """Rows with a letter for their task, where there are several tasks, and in what these differ."""
    tasks = [task_of(row.settings) for row in rows]
    different = [task for place, task in enumerate(tasks) if task not in tasks[:place]]
    if len(different) < 2:
        return list(rows), {}
    letters = [_letter(place) for place in range(len(different))]
    keys = differing(different)
    found = {letter: only(task, keys) for letter, task in zip(letters, different, strict=True)}
    return [replace(row, task=letters[different.index(task)]) for row, task in zip(rows, tasks, strict=True)], found


def _letter(place: int) -> str:
    """A, B, ... Z, A2, ..."""
    return chr(ord("A") + place % 26) + (str(place // 26 + 1) if place >= 26 else "")


def _set_against(rows: Sequence[Row], baseline: str | None, metric: str) -> list[Row]:
    """Each row with what its seeds tell beside those of its baseline. Only rows of one task are set against each other."""
    bases = _bases(rows, baseline)
    found = list[Row]()
    for row in rows:
        base = None if any(row is base for base in bases) else _most_alike(row, bases)
        ends = [(end.value(metric), other.value(metric)) for end, other in row.pairs(base)] if base else []
        differences = [own - other for own, other in ends if isfinite(own - other)]
        found.append(replace(row, baseline=base.name if base else "", against=paired(differences) if base else None))
    told = [row.against for row in found if row.against]
    ps, flips = iter(holm([one.p for one in told])), iter(holm([one.flip for one in told]))
    return [replace(row, p=next(ps), flip=next(flips)) if row.against else row for row in found]


def _bases(rows: Sequence[Row], baseline: str | None) -> list[Row]:
    """Raises FedsimError, with the nearest name, for one that is unknown."""
    if baseline is None:
        return [next((row for row in rows if row.ends), rows[0])]
    by_name = [row for row in rows if row.name == baseline] or [row for row in rows if row.variant == baseline]
    if not by_name and "=" in baseline:
        by_name = [row for row in rows if _has(rows, baseline)(row)]
    if not by_name:
        from fedsim.scenario.leaves import nearest

        known = Counter([*(row.name for row in rows), *(row.variant for row in rows if row.variant)])
        raise FedsimError(f"unknown baseline `{baseline}`{nearest(baseline, known)}")
    return by_name


def _most_alike(row: Row, bases: Sequence[Row]) -> Row | None:
    """Of those of the same task the one with the fewest other settings."""
    same = [base for base in bases if base.task == row.task]
    return min(same, key=lambda base: len(differing([row.settings, base.settings])), default=None)
