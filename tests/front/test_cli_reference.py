"""docs/cli.md is what the commands say of themselves; `make reference` writes it anew."""

from pathlib import Path

from typer.cli import get_docs_for_click
from typer.core import MARKUP_MODE_KEY
from typer.main import get_command

from talik.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    command = get_command(app)
    with command.make_context(
        "talik", [], resilient_parsing=True, obj={MARKUP_MODE_KEY: app.rich_markup_mode}
    ) as context:
        said = get_docs_for_click(obj=command, ctx=context, name="talik", title="The command line")
    assert PAGE.read_text(encoding="utf-8").strip() == said.strip(), "docs/cli.md is out of date: run make reference"
