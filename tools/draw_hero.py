"""Draw docs/hero.jpg: three photographs that ship, merged at two operating points.

    python tools/draw_hero.py RUN RUN

The runs are finished exports of one model, the more careful operating point first; pictures are
those of `atm-export visualize --plain`. Photographs: atm_export/photos/README.md (CC0 and public
domain).
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from atm_export import photos
from atm_export.cli import main as atm_export
from atm_export.inputs import stated_input
from atm_export.pictures import read_rgb
from atm_export.preprocess import read_image
from atm_export.runs.reading import open_run

NAMES = ("cat", "raccoon", "coffee")
OUT = Path(__file__).resolve().parents[1] / "docs" / "hero.jpg"
MARGIN, LINE, INK = 8, 22, (40, 40, 40)


def tokens_of(run: Path, folder: Path) -> list[tuple[Image.Image, str]]:
    """What `visualize` draws and says of each photograph."""
    files = [str(photos.FOLDER / f"{name}.jpg") for name in NAMES]
    told = io.StringIO()
    with redirect_stdout(told):
        if atm_export(["visualize", str(run), *files, "--plain", "--out", str(folder)]):
            raise SystemExit(f"{run}: visualize failed")
    lines = [line.partition(": ")[2] for line in told.getvalue().splitlines()]
    pictures = [read_rgb(folder / f"{name}-tokens.png") for name in NAMES]
    return list(zip(pictures, lines, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs=2, type=Path)
    runs = parser.parse_args().runs
    how = stated_input(open_run(runs[0]).manifest.document).preprocessing
    originals = [
        (Image.fromarray(read_image(photos.FOLDER / f"{name}.jpg", how)), "") for name in NAMES
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = [originals, *(tokens_of(run, Path(folder, str(i))) for i, run in enumerate(runs))]
    side = how.size[0]
    whole = re.search(r"of (\d+)", rows[1][0][1])
    report = json.loads((runs[0] / "report.json").read_text(encoding="utf-8"))
    told = f"{whole and whole[1]} tokens, {report['gflops']['unmerged']:.3f} GFLOPs"
    rows[0] = [(picture, told) for picture, _ in rows[0]]
    sheet = Image.new(
        "RGB", (3 * (side + MARGIN) + MARGIN, 3 * (side + LINE + MARGIN)), (255, 255, 255)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for y, row in enumerate(rows):
        for x, (picture, told) in enumerate(row):
            at = (MARGIN + x * (side + MARGIN), MARGIN + y * (side + LINE + MARGIN))
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), at)
            words = re.sub(r" of \d+", "", told)
            draw.text((at[0], at[1] + side + 3), words, fill=INK, font=font)
    sheet.save(OUT, quality=88)


if __name__ == "__main__":
    main()
