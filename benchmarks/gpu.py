"""Both stages on a machine with one GPU and no network, each beside its bound taken in the same run.

    python benchmarks/gpu.py --out FOLDER [--budget 400] [--only stage1,stage2,profile]
    python benchmarks/gpu.py --page FOLDER/gpu.json     write benchmarks/gpu.md from a run's numbers
    python benchmarks/gpu.py --quick --out FOLDER       everything in small, for tests

The clips, with H.264 pictures and AAC sound, and encoders of the sizes of DINOv2 ViT-L/14, Whisper-small and BERT-base
with random weights are made first. Stage 1: decoding alone with all cores, the bare prefixes on full batches in memory,
and `talik.extract` into a new store, interleaved. Stage 2: the bare compiled bfloat16 suffix forward and backward;
steps of single variants and of lockstep groups on states in memory and from the store; reading alone. Every section
prints its numbers, and writes them to FOLDER/gpu.json, as soon as it has them; one that fails does not stop the others,
one that the budget does not hold is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from gpu_sample import FULL, QUICK

STAGES = ("stage1", "stage2", "profile")


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for gpu.json, gpu.md and profiles")
    parser.add_argument("--budget", type=float, default=400.0, help="seconds that everything may take")
    parser.add_argument("--only", default="stage1,stage2", help="of stage1, stage2 and profile, with commas")
    parser.add_argument("--device", help="a GPU where there is one")
    parser.add_argument(
        "--compute", default="bfloat16", help="precision of the prefixes, where stage 1 has the setting"
    )
    parser.add_argument("--profile", action="store_true", help="write tables of operators too: --only with profile")
    parser.add_argument("--workers", type=int, help="decoding processes of stage 1; its default if absent")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for tests")
    parser.add_argument("--work", type=Path, help="folder for clips and stores, kept; a temporary one if absent")
    parser.add_argument("--page", type=Path, metavar="JSON", help="write benchmarks/gpu.md from this file, and end")
    options = parser.parse_args(arguments)
    import torch  # here, so that the processes that only make clips need not import it
    from gpu_page import page
    from gpu_sections import Benchmark, Sections, machine

    if options.page:
        text = page(json.loads(options.page.read_text(encoding="utf-8")))
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
        return
    if options.out is None:
        parser.error("--out: expected a folder")
    wanted = {*options.only.split(","), *["profile"] * options.profile}
    if not wanted <= {*STAGES}:
        parser.error(f"--only: found {options.only!r}, expected of {', '.join(STAGES)}, with commas")
    only = tuple(stage for stage in STAGES if stage in wanted)
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = QUICK if options.quick else FULL
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        facts = {"environment": machine(device), "sizes": vars(sizes), "compute": options.compute}
        sections = Sections(options.out, budget=options.budget, only=only, facts=facts, interrupts=not options.quick)
        Benchmark(work, sizes, device=device, compute=options.compute, sections=sections, workers=options.workers).run()
        (options.out / "gpu.md").write_text(page(sections.facts), encoding="utf-8")


if __name__ == "__main__":
    main()
