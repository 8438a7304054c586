"""PYTHON-OF-THE-TOOLS draw.py FILE.svg < points.json: added delay and CPU against the number of streams."""

import json
import sys

import matplotlib as mpl
from matplotlib import pyplot as plt

# Text stays text, and the same points give the same file.
STABLE = {"svg.fonttype": "none", "svg.hashsalt": "streams", "font.family": "sans-serif", "font.size": 11}
# Okabe and Ito's: distinct for all who see colours differently; markers for who sees none.
STYLES = {"nginx": ("#009E73", "s"), "vllm-router": ("#E69F00", "^"), "madoguchi": ("#0072B2", "o")}
LEAST = 0.05  # ms: below that it is the clock that is measured


def main(path: str) -> None:
    points = json.load(sys.stdin)
    mpl.rcParams.update(STABLE)
    figure, (delay, cpu) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", facecolor="white")
    for name, (colour, marker) in STYLES.items():
        own = [point for point in points if point["contender"] == name]
        streams = [point["streams"] for point in own]
        for what, line in (("p99", "-"), ("p50", "--")):
            late = [max(LEAST, point[what]) for point in own]
            delay.plot(streams, late, line, color=colour, marker=marker, markersize=5, label=f"{name} {what}")
        cores = [100 * point["core"] for point in own]
        cpu.plot(streams, cores, "-", color=colour, marker=marker, markersize=5, label=name)
    delay.axhline(20, color="#666666", linewidth=1, linestyle=":")
    delay.annotate("goal: 20 ms at 1,000", (50, 21.5), color="#444444", fontsize=9)
    delay.set(yscale="log", ylabel="added delay of a token, ms", title="Added delay")
    cpu.set(ylabel="CPU, % of one core", title="CPU", ylim=(0, None))
    for axes in (delay, cpu):
        axes.set(xlabel="streams of 30 tokens a second", xlim=(0, None))
        axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(fontsize=9, framealpha=1)
        axes.spines[["top", "right"]].set_visible(False)
    delay.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
