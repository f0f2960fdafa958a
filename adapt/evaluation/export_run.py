"""A finished run as a folder that stands alone: weights, settings, local encoders, and a card that says what it is.

The card is Markdown with the head that model hubs read; `talik predict` takes the folder as it takes a run's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from ...cache.atomic_io import new_folder
from ...extract.stage.pack_contents import PackContents
from ..scoring.metrics import read_scores
from ..training.run_folder import EXPORTED, RunFolder

_COPIED = ("adapter.safetensors", "adapter.json", "result.json")


def export_run(run: Path | str, out: Path | str, *, experiment: Path | str | None = None) -> Path:
    """Write a finished run as a folder that stands alone.

    Encoders that a name stands for ("timm:…", "hf:…" of a hub, "pip:…") are named with their digests; local folders and
    weights go along. The data set and the store do not.

    Args:
        run: the run's folder, runs/<experiment>/<variant>/seed<k>.
        out: a folder that is not there yet.
        experiment: a file that says where the encoders lie, if not where the run's settings say.

    Returns:
        `out`.

    Raises:
        RunError: not a finished run's folder.
        SettingsError: `out` is there already.
        StoreFullError: no room.

    Example:
        >>> path = export_run("runs/exp/trimodal/seed0", "trimodal-export")
        >>> sorted(p.name for p in path.iterdir() if p.is_file())[:3]
        ['README.md', 'adapter.json', 'adapter.safetensors']
    """
    folder, out = RunFolder(Path(run)), Path(out)
    own, _ = folder.experiment(places=experiment)
    folder.check_done()
    config = folder.config()
    given = f"{config['experiment']}.toml"
    made = {
        "talik": version("talik"),
        "command": f"talik adapt {given} --variant {json.dumps(config['variant'])} --seed {config['seed']}",
    }
    described = folder.read_json("adapter.json")
    contents, base = PackContents(), own.base
    hubs = [name for e in config["encoders"].values() if (name := _on_a_hub(str(e["model"]), base))]
    card = "\n".join(_card(config, described, folder.result(), _data(folder), made, hubs)) + "\n"
    for encoder in config["encoders"].values():
        contents.add_encoder(encoder, base)
    if "import" in config:
        config["import"] = [contents.add_code(name, base) for name in config["import"]]
    config["data"]["root"], config["store"]["path"] = "data", "features.zarr"  # not in it: nothing here reads them
    for name in _COPIED:
        contents.files[name] = folder.path / name
    if (folder.path / "peft").is_dir():  # what PEFT loads
        contents.add(folder.path / "peft", "peft")
    contents.files["config.toml"] = tomli_w.dumps(config).encode()
    contents.files[EXPORTED] = json.dumps(made, indent=2).encode()
    contents.files["README.md"] = card.encode()
    with new_folder(out) as made_folder:
        contents.write(made_folder)
    return out


def _data(folder: RunFolder) -> Mapping[str, Any]:
    return folder.read_json("data.json") if (folder.path / "data.json").is_file() else {}


def _card(
    config: Mapping[str, Any],
    described: Mapping[str, Any],
    result: Mapping[str, Any],
    data: Mapping[str, Any],
    made: Mapping[str, str],
    bases: list[str],
) -> Iterator[str]:
    """Yield the lines of the card."""
    kind, encoders = str(config["adapter"]["kind"]), described["encoders"]
    yield "---"
    yield "library_name: talik"
    yield f"tags: [talik, adapter, {json.dumps(kind)}]"
    if bases:
        yield f"base_model: {json.dumps(bases)}"
    yield "---"
    yield ""
    yield f"# {config['variant']}"
    yield ""
    yield f"A `{kind}` adapter between the units of frozen encoders, trained with talik {made['talik']}."
    yield ""
    yield "## Encoders"
    yield ""
    rows = []
    for modality, encoder in encoders.items():
        at = ", ".join(str(one[modality]) for one in described["insertions"] if modality in one) or "none"
        rows.append([modality, f"`{encoder['model']}`", encoder["num_units"], at, f"`{encoder['digest']}`"])
    yield from _table(["modality", "model", "units", "adapter at", "digest"], rows)
    yield ""
    yield "## Data"
    yield ""
    num_answers = len(described["answers"])
    yield f"`{config['data']['dataset']}`, {described['num_segments']} segments a clip, {num_answers} answers."
    if "splits" in data:
        yield ""
        rows = [[name, split["num_questions"], f"`{split['digest']}`"] for name, split in data["splits"].items()]
        yield from _table(["split", "questions", "digest"], rows)
    yield ""
    yield f"## Scores on `{result['split']}`"
    yield ""
    scores = read_scores(result)
    tallies = [*scores.by_type.items(), *scores.by_subset.items(), ("all", scores.overall)]
    rows = [[name, f"{100 * tally.accuracy:.2f} %", str(tally)] for name, tally in tallies]
    yield from _table(["type", scores.metric.label, "correct" if scores.metric.name == "accuracy" else "of"], rows)
    yield ""
    yield f"Seed {config['seed']}; {result['trainable_params']:,} trained parameters."
    yield ""
    yield "## Made by"
    yield ""
    yield f"    {made['command']}"
    yield ""
    yield "```toml"
    shown = {name: config[name] for name in ("insertion", "placement", "adapter", "train")}
    yield tomli_w.dumps(shown).rstrip()
    yield "```"
    yield ""
    yield "## Use"
    yield ""
    yield '    talik predict FOLDER --video FILE --question "…"'


def _table(head: list[str], rows: list[list[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


def _on_a_hub(model: str, base: Path) -> str | None:
    """Return the name of a model on a hub, None of one that is a folder here or inside a package."""
    kind, _, name = model.partition(":")
    name = name.partition("#")[0]
    if kind == "timm":
        return f"timm/{name}"
    return name if kind == "hf" and not (base / Path(name).expanduser()).exists() else None
