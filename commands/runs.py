"""The commands of finished runs: `evaluate`, `predict`, `report`, `export`, `push`, `pull`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import SettingsError, counted
from .options import AsJson, Device, Places, RunPath, names_in
from .printing import say_device, show
from .usage import Command

app = typer.Typer()


@app.command(cls=Command)
def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="Which questions.")] = "test",
    live: Annotated[bool, typer.Option("--live", help="From the media files, without the store.")] = False,
    gates: Annotated[
        bool, typer.Option("--gates", help="Also write what the adapter's selection kept: gates-SPLIT.jsonl.")
    ] = False,
    experiment: Places = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a finished run on a split, by question type."""
    from ..adapt.evaluation.evaluate import evaluate as score

    evaluation = score(run, split=split, live=live, gates=gates, experiment=experiment, device=device)
    say_device(device)
    for note in evaluation.notes:
        typer.echo(note, err=True)
    scores = evaluation.scores
    whole = "Avg" if scores.metric.name == "accuracy" else scores.metric.label
    rows = [*scores.by_type.items(), *scores.by_subset.items(), (whole, scores.overall)]
    f1 = [f"{'macro F1':10s} {100 * evaluation.macro_f1:6.2f} %  (mean over the answers)"]
    if evaluation.micro_f1 is not None:
        f1.append(f"{'micro F1':10s} {100 * evaluation.micro_f1:6.2f} %  (of all decisions)")
    lines = [f"{name:10s} {100 * tally.accuracy:6.2f} %  ({tally})" for name, tally in rows]
    show(
        [*lines[:-1], *f1, lines[-1]],
        {**vars(evaluation), scores.metric.name: scores.overall.accuracy},
        as_json=as_json,
    )


@app.command(cls=Command)
def predict(
    run: RunPath,
    video: Annotated[Path, typer.Option(help="A video file.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")] = "",
    top: Annotated[int, typer.Option(help="How many answers to show.")] = 5,
    experiment: Places = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Answer a question about a video with a finished run, from the file itself."""
    from ..adapt.evaluation.predict import predict as answer

    found = answer(run, video=video, question=question, top=top, experiment=experiment, device=device)
    say_device(device)
    show(found.lines(), found, as_json=as_json)


@app.command(cls=Command)
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    experiment: Places = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished run as a folder that stands alone, with a model card; predict takes it, and so do model hubs."""
    from ..adapt.evaluation.export_run import export_run

    found = export_run(run, out, experiment=experiment)
    files = [path for path in found.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    line = f"{found}: {counted(len(files), 'file')}, {size / 1e6:.1f} MB; README.md says what it is"
    show([line], {"path": found, "files": len(files), "bytes": size}, as_json=as_json)


@app.command(cls=Command)
def push(
    exported: Annotated[Path, typer.Argument(help="A folder that export wrote.")],
    repo: Annotated[str, typer.Argument(help="NAME/REPOSITORY; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload an exported run to a model hub (extra hub; HF_ENDPOINT and HF_TOKEN say where and as whom)."""
    from ..adapt.evaluation.hub import push

    typer.echo(push(exported, repo, private=private))


@app.command(cls=Command)
def pull(
    repo: Annotated[str, typer.Argument(help="NAME/REPOSITORY.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit; the newest by default.")] = None,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Take a run that brings code of its own.")] = False,
) -> None:
    """Download an exported run from a model hub, for predict."""
    from ..adapt.evaluation.hub import pull

    typer.echo(f"{pull(repo, out, revision=revision, trust_code=trust_code)}: see its README.md")


@app.command(cls=Command)
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, or folders above them; PREFIX=FOLDER puts PREFIX/ before the variants' names."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The variant that the others are compared with; the first by default.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("report"),
    skip_unfinished: Annotated[bool, typer.Option("--skip-unfinished", help="Leave unfinished runs out.")] = False,
    every_point: Annotated[
        bool, typer.Option("--every-point", help="Show all points of a search on test, not its choice on validation.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(help="Whose predictions: val, for instance, as evaluate wrote them; test by default.")
    ] = None,
    order: Annotated[str | None, typer.Option(help="Variants in the order of their rows, separated by commas.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="A variant's printed name; as often as you like.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the accuracy table, separated by commas: question types and their groups, Avg, val, "
            "params, flops, trained-flops, hours, seeds, macro-f1, micro-f1, or settings such as train.lr; in double "
            "quotes where a comma belongs to the name."
        ),
    ] = None,
    spread: Annotated[
        Literal["interval", "sd"],
        typer.Option(help="What stands after ±: interval, half of the 95 % t interval over seeds; or sd."),
    ] = "interval",
    as_json: AsJson = False,
) -> None:
    """Write the table of finished runs, with what it cost: Markdown, LaTeX, CSV, JSON, figures and one HTML page."""
    from ..adapt.report.write import report as write

    files = write(
        _prefixed(runs),
        out=out,
        baseline=baseline,
        skip_unfinished=skip_unfinished,
        every_point=every_point,
        split=split,
        order=names_in(order or ""),
        labels=dict(_pair(text, "--label", "NAME=TEXT") for text in label or ()),
        columns=names_in(columns or ""),
        spread=spread,
    )
    value = json.loads(files.json.read_text(encoding="utf-8")) if as_json else None
    show([*files.notes, "", files.text, *files.costs.lines(), str(files.html)], value, as_json=as_json)


def _prefixed(runs: list[str]) -> dict[str, list[str]]:
    """Return the folders by prefix; a folder that is there as it is written has none."""
    found: dict[str, list[str]] = {}
    for text in runs:
        prefix, folder = ("", text) if "=" not in text or Path(text).exists() else _pair(text, "runs", "PREFIX=FOLDER")
        found.setdefault(prefix, []).append(folder)
    return found


def _pair(text: str, option: str, expected: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise SettingsError(f"{option}: found {text!r}, expected {expected}")
    return name, value
