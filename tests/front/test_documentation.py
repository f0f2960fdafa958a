"""The pages tell the truth: links lead somewhere, commands and options exist, blocks run at a small size."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

import talik as package
from talik import cli

Run = Callable[..., tuple[int, str, str]]

#: In which folder the blocks of a page run.
WORLDS = {
    "README.md": "study",
    "docs/your-data.md": "study",
    "docs/your-adapter.md": "study",
    "docs/reports.md": "study",
    "docs/concepts.md": "study",
    "docs/recipes/linear-probe.md": "study",
    "docs/recipes/which-layer.md": "study",
    "docs/recipes/lora.md": "study",
    "docs/recipes/features-for-others.md": "study",
    "docs/get-started.md": "demo_folder",
    "docs/experiment.md": "made",
    "docs/store.md": "made",
    "docs/training.md": "made",
    "docs/encoders.md": "made",
}
#: Pages whose blocks other tests run, or that show only what is marked.
ELSEWHERE = {
    "docs/cli.md": "generated",
    "docs/extending.md": "tests/adapt/test_extending.py, tests/extract/test_own_sources.py",
    "docs/sweeps.md": "tests/adapt/test_run_list.py",
    "docs/music-avqa.md": "tests/adapt/test_music_avqa.py",
}
#: The pages' encoders and layers, and those that the tests take in their place.
SMALLER = {
    r"pip:dinov2-small": "hf:{visual}",
    r"pip:whisper-tiny\.en": "hf:{audio}#encoder",
    r"pip:minilm-l6": "hf:{text}",
    r"image_size = 98": 'image_size = 28, fit = "stretch"',
    r"window_seconds = 1\.0": "window_seconds = 0.4",
    r"epochs = 3": "epochs = 1, num_threads = 1",
    r"Avg,AV-temp": "Avg",
    r"--seeds 2": "--seeds 1",
    r"cut = \[(11, 12|3, 4|5, 6)\]": "cut = [2, 3]",
    r"([\[(])3, 6, 9, 11, 12([\])])": r"\g<1>0, 1, 2, 3\g<2>",
    r"visual = \[12\], audio = \[4\], text = \[5\]": "visual = [3], audio = [3], text = [2]",
    r"visual = \[11, 12\], audio = \[3, 4\]": "visual = [2, 3], audio = [2, 3]",
    r"visual = \[11\]": "visual = [2]",
    r"(probe\('\w+', )(12|4)\)": r"\g<1>3)",
    r"layer=12": "layer=3",
    r"\(4, 384\)": "(4, 24)",
}
QUESTION = "How many instruments are sounding in the video?"


ROOT = Path(package.__file__).parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
}
#: A block with such a title is parsed and not run; the title tells the reader why.
NOT_RUN = ("needs ", "for example", "fragment")
_FENCE = re.compile(r"^```(\w*)[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        title: what stands above it on the site: a file's name, or what it needs.
    """

    page: str
    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether the tests run it."""
        return not self.title.startswith(NOT_RUN)

    @property
    def commands(self) -> list[str]:
        """The command lines in it, without prompts; continued lines are joined."""
        if self.language not in ("", "console", "bash", "sh"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return prompted or [line for line in lines if re.match(r"(talik|python|make|pip|torchrun|srun) ", line)]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = _FENCE.findall(PAGES[page])
    assert PAGES[page].count("\n```") == 2 * len(found), f"{page}: a fence that is not understood"
    titles = [re.search(r'title="([^"]*)"', info) for _, info, _ in found]
    return [
        Block(page, language, title[1] if title else "", text)
        for (language, _, text), title in zip(found, titles, strict=True)
    ]


def talik_commands(page: str) -> Iterator[list[str]]:
    """Yield the arguments of each `talik …` of a page, those inside sentences included."""
    prose = _FENCE.sub("", PAGES[page])
    inline = [" ".join(code.split()) for code in re.findall(r"`(talik [^`]*)`", prose)]
    indented = [line.strip().removeprefix("$ ") for line in re.findall(r"^    (?:\$ )?talik .*$", prose, re.MULTILINE)]
    fenced = [command for block in blocks(page) for command in block.commands]
    for line in [*inline, *indented, *fenced]:
        found = re.match(r"(?:[A-Z_]+=\S+ )*(?:srun |torchrun .* -m )?talik(?: (.*))?$", line)
        if found:
            yield arguments(found[1] or "")


def arguments(line: str) -> list[str]:
    """Return a command line's arguments without its comment."""
    return shlex.split(re.split(r"\s{3,}(?!-)", line.replace("…", ""))[0], comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)", text)
    folder = (ROOT / page).parent
    assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"docs/cli.md"}))  # that page is written from the commands
def test_commands_and_their_options_exist(page: str) -> None:
    everything = get_command(cli.app)
    context = everything.make_context("talik", [], resilient_parsing=True)
    for given in talik_commands(page):
        command = everything
        rest = list(given)
        while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
            if command.name == "runs" and rest[0] not in command.commands:  # a path: `talik runs list` by default
                command = command.commands["list"]
                break
            assert rest[0] in command.commands, f"{page}: talik {' '.join(given)}"
            command = command.commands[rest.pop(0)]
        if rest and "[" not in " ".join(rest):
            known = {name for parameter in command.get_params(context) for name in (*parameter.opts, "-h", "--help")}
            options = {one.partition("=")[0] for one in rest if one.startswith("--")}
            assert options <= known | {f"--no-{k[2:]}" for k in known}, f"{page}: talik {' '.join(given)}"


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    for page in PAGES.keys() - WORLDS.keys() - ELSEWHERE.keys():
        for block in blocks(page):
            runnable = [c for c in block.commands if c.startswith("talik")] or block.language == "python"
            assert not (runnable and block.is_run), f"{page}: name it in WORLDS, or give the block a title {NOT_RUN}"


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    def minutes(page: str, way: str) -> str:
        found = re.search(
            rf"^\| {way} \| [^|]* \| ([\d.]+) ", (ROOT / "benchmarks" / page).read_text("utf-8"), re.MULTILINE
        )
        assert found, (page, way)
        return f"{float(found[1]):.0f} min"

    rows = re.findall(r"^\| [^|]* \| (\d+ (?:min|s)) \| (\d+ (?:min|s)) \|", PAGES["README.md"], re.MULTILINE)
    cpu = [(minutes(page, "naive"), minutes(page, "fused")) for page in ("sweep.md", "sweep_grouped.md")]
    lasts = re.search(
        r"with extraction (\d+ s); each with `--live` (\d+ s)", (ROOT / "benchmarks/gpu.md").read_text("utf-8")
    )
    assert lasts
    assert rows == [*cpu, (lasts[2], lasts[1])]


@pytest.fixture(scope="module")
def own_videos(tmp_path_factory: pytest.TempPathFactory, demo_set: Path, tiny_encoders: dict[str, Path]) -> Path:
    """The folder `study` of the pages: videos, manifest.csv, experiment.toml, its store and its runs."""
    folder = tmp_path_factory.mktemp("own") / "study"
    manifest = package.load_manifest({"dataset": "demo", "root": str(demo_set)})
    (folder / "videos").mkdir(parents=True)
    rows = []
    for number, (name, clip) in enumerate(sorted(manifest.clips.items())):
        shutil.copy(clip.path, folder / "videos" / f"{name}.mp4")
        split = {6: "val", 7: "test"}.get(number, "train")
        asked = [q for q in manifest.questions if q.clip_id == name and q.text != QUESTION][:3]
        rows += [(f"videos/{name}.mp4", q.text, q.answer, split) for q in asked]
        rows.append((f"videos/{name}.mp4", QUESTION, ("one", "two")[number % 2], split))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("clip", "question", "answer", "split"), *rows])
    (experiment,) = (b for b in blocks("docs/your-data.md") if b.title == "experiment.toml")
    (folder / "experiment.toml").write_text(smaller(experiment.text, tiny_encoders), encoding="utf-8")
    package.extract(folder / "experiment.toml", progress=False)
    package.sweep(folder / "experiment.toml", progress=False)
    (probe,) = (b for b in blocks("docs/recipes/linear-probe.md") if b.title == "layer_probe.py")
    (folder / "layer_probe.py").write_text(smaller(probe.text, tiny_encoders), encoding="utf-8")
    return folder


@pytest.fixture
def study(own_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `own_videos` as working directory."""
    folder = Path(shutil.copytree(own_videos, tmp_path / "study", copy_function=shutil.copy))
    (folder / "layers.toml").write_text('extends = "experiment.toml"\n', encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def demo_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_store: Callable[..., Path], demo_set: Path, extracted: Path
) -> Path:
    """What `talik demo` leaves, at the tests' size."""
    on_store(tmp_path / "demo.toml")
    (tmp_path / "set").symlink_to(demo_set)
    (tmp_path / "features.zarr").symlink_to(extracted.with_name("features.zarr"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def smaller(text: str, encoders: dict[str, Path]) -> str:
    """Return a page's text with the tests' encoders in place of its own."""
    for pattern, own in SMALLER.items():
        text = re.sub(pattern, own.format(**encoders) if "{" in own else own, text)
    return text


@pytest.fixture
def page_runner(
    request: pytest.FixtureRequest,
    talik: Run,
    tiny_encoders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Callable[[str], None]]:
    """Run a page's blocks in order: files are written, commands and Python run, what is printed compared."""
    before = set(sys.modules)

    def run_page(page: str) -> None:
        world = request.getfixturevalue(WORLDS[page])
        monkeypatch.syspath_prepend(str(world))
        names: dict[str, object] = {"__name__": "page"}
        for block in filter(lambda block: block.is_run, blocks(page)):
            text = smaller(block.text, tiny_encoders)
            if re.fullmatch(r"[\w/]+\.(toml|csv|py|jsonl)", block.title):
                (world / block.title).write_text(text, encoding="utf-8")
            elif block.language == "python":
                capsys.readouterr()
                exec(compile(text, page, "exec"), names)
                expected = re.findall(r"^\s*print\(.*\)  # (.*)$", text, re.MULTILINE)
                printed = capsys.readouterr().out.splitlines()
                assert set(expected) <= set(printed), (page, expected, printed)
            for command in Block(page, block.language, block.title, text).commands:
                if command.startswith("talik "):
                    run_command(talik, world, command, fails=block.title.startswith("an error"))

    yield run_page
    for name in set(sys.modules) - before:
        if "." not in name and name in ("layer_probe", "mine"):
            del sys.modules[name]


def run_command(talik: Run, world: Path, command: str, *, fails: bool) -> None:
    given = arguments(command.removeprefix("talik "))
    for number, one in enumerate(given):  # the name of a boundary is that of other encoders
        if (boundary := re.fullmatch(r"(visual|audio|text)/b\d+-[0-9a-f]{12}", one)) and not (
            world / "features.zarr" / one
        ).is_dir():
            given[number] = str(
                sorted((world / "features.zarr").glob(f"{boundary[1]}/b*"))[-1].relative_to(world / "features.zarr")
            )
    code, _, said = talik(*given)
    assert (code == 0) is not fails, f"{command}: {said}"


@pytest.mark.parametrize("page", WORLDS)
def test_the_blocks_run(page: str, page_runner: Callable[[str], None]) -> None:
    page_runner(page)
