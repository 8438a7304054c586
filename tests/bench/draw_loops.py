"""PYTHON-OF-THE-TOOLS draw_loops.py FILE.svg < points.json: the tokens that looping answers had when ended."""

import json
import sys

import matplotlib as mpl
from matplotlib import pyplot as plt

# Text stays text, and the same points give the same file.
STABLE = {"svg.fonttype": "none", "svg.hashsalt": "loops", "font.family": "sans-serif", "font.size": 11}
# Okabe and Ito's: distinct for all who see colours differently; markers for who sees none.
ENDED = {"guard": ("the guard", "#0072B2", "o"), "litellm": ("LiteLLM", "#E69F00", "^")}


def main(path: str) -> None:
    points = json.load(sys.stdin)
    mpl.rcParams.update(STABLE)
    temperatures = sorted({point["temperature"] for point in points})
    figure, panels = plt.subplots(
        1, len(temperatures), figsize=(11, 5.2), layout="constrained", facecolor="white", squeeze=False
    )
    for axes, temperature in zip(panels[0], temperatures, strict=True):
        own = [point for point in points if point["temperature"] == temperature]
        own.sort(key=lambda point: (point["begun"] is None, point["begun"] or 0))
        panel(axes, own)
        axes.set(title=f"temperature {temperature:g}: {len(own)} answers")
    panels[0][0].set(ylabel="answers, by where their loop begins")
    figure.savefig(path, metadata={"Date": None})


def panel(axes: plt.Axes, points: list[dict[str, float | None]]) -> None:
    rows = range(len(points))
    starts = [point["generated"] if point["begun"] is None else point["begun"] for point in points]
    axes.hlines(rows, 0, starts, color="#cccccc", linewidth=1.5, label="answer")
    axes.hlines(rows, starts, [point["generated"] for point in points], color="#D55E00", linewidth=1.5, label="loop")
    for who, (name, colour, marker) in ENDED.items():
        ended = [(point[who], row) for row, point in zip(rows, points, strict=True) if point[who] is not None]
        label = f"ended by {name}: {len(ended)}"
        axes.plot(*(zip(*ended, strict=True) if ended else ((), ())), marker, color=colour, markersize=5, label=label)
    never = [(point["generated"], row) for row, point in zip(rows, points, strict=True) if point["guard"] is None]
    label = f"never ended by the guard: {len(never)}"
    axes.plot(*(zip(*never, strict=True) if never else ((), ())), "x", color="#000000", markersize=6, label=label)
    axes.set(xlabel="tokens generated", xlim=(0, None), yticks=[])
    axes.legend(fontsize=9, framealpha=1, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    main(sys.argv[1])
