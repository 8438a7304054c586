"""What the harness makes of what it measured. The measuring itself is `make bench`."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import measuring, processes, profiling, report
from tests.bench.measuring import Row
from tests.bench.report import Goal, Part
from tests.installation import ROOT

ROW = Row(
    contender="direct",
    workload="paced500",
    round=1,
    good=500,
    bad=0,
    fault="",
    us_per_request=None,
    us_per_token=None,
    core=None,
    p50=0.1,
    p99=1.0,
    peak_mb=None,
    disturbed=0.0,
)
PAGE = """# Results
<!-- goals -->
| goal | wanted | reached | |
|---|---|---|---|
| speed | ≤ 1 | 2 | **no** |
| every answer of these runs has its usage row, and only one | 2 | 2 | yes |
| size | ≤ 5 | 4 | yes |
<!-- /goals -->
Words.
<!-- speed -->
<!-- /speed -->
"""


def rows(contender: str, *figures: tuple[float, float]) -> list[Row]:
    """Return one for each round: p99 and µs per token."""
    return [
        replace(ROW, contender=contender, round=number, p99=p99, us_per_token=cost)
        for number, (p99, cost) in enumerate(figures, 1)
    ]


def test_a_delay_is_what_is_added_to_the_direct_run_of_the_same_round():
    direct = rows("direct", (1.0, 0), (50.0, 0), (2.0, 0))
    mine = rows("mine", (4.0, 0), (51.0, 0), (4.0, 0))
    assert measuring.added(direct + mine, "mine", "paced500", "p99") == 2.0


def test_a_ratio_is_made_within_a_round():
    other, mine = rows("other", (0, 10), (0, 100), (0, 20)), rows("mine", (0, 15), (0, 160), (0, 30))
    assert measuring.ratio(other + mine, "mine", "other", "paced500", "us_per_token") == 1.5


def test_a_row_that_was_repeated_does_not_count():
    disturbed = replace(ROW, p99=900.0, repeated=True)
    assert measuring.middle([disturbed, ROW], "direct", "paced500", "p99") == 1.0


def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    report.write({"speed": "first"}, page)
    for text in ("| \\1 second |", "30 November"):
        report.write({"speed": text}, page)
        assert page.read_text() == PAGE.replace("<!-- speed -->\n", f"<!-- speed -->\n{text}\n")


def test_a_section_that_the_page_does_not_have_is_told(tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    with pytest.raises(SystemExit, match="no section sped"):
        report.write({"sped": "1"}, tmp_path / "page.md")


def test_goals_that_were_not_measured_again_stay_as_they_were(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    goal = Goal(text="speed", wanted="≤ 1", reached="0.9", met=True)
    merged = report.merged([Part(name="speed", markdown="", goals=(goal,), answered=3, recorded=3)], page).splitlines()
    assert merged == [
        "| goal | wanted | reached | |",
        "|---|---|---|---|",
        "| speed | ≤ 1 | 0.9 | yes |",
        "| size | ≤ 5 | 4 | yes |",
        "| every answer of these runs has its usage row, and only one | 3 | 3 | yes |",
    ]


def test_one_answer_too_few_and_one_too_many_are_not_exact():
    parts = [Part(name="a", markdown="", answered=2, recorded=1), Part(name="b", markdown="", answered=2, recorded=3)]
    assert not report.exactness(parts).met


def test_every_section_that_is_written_is_on_the_page():
    page = report.RESULTS.read_text()
    names = subprocess.run(
        [sys.executable, "-c", "from tests.bench.__main__ import PARTS; print(*PARTS)"],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert [name for name in ("goals", *names) if f"<!-- {name} -->\n" not in page] == []


@pytest.mark.parametrize(
    ("frames", "place"),
    [
        (
            ("run (uvicorn/main.py:632)", "_relay (apiproxy/dataplane/gateway.py:205)", "write (libc.so.6)"),
            "kernel: write",
        ),
        (
            ("_relay (apiproxy/dataplane/gateway.py:205)", "dict_get (libpython3.11.so.1.0)"),
            "apiproxy/dataplane/gateway.py",
        ),
        (("_relay (apiproxy/dataplane/gateway.py:205)", "__init__ (<string>:3)"), "apiproxy/dataplane/gateway.py"),
        (("send (uvicorn/protocols/http/httptools_impl.py:524)",), "uvicorn"),
        (("_relay (apiproxy/dataplane/gateway.py:205)", "gc_collect_main (libpython3.11.so.1.0)"), "garbage collector"),
        (("uv_run (core.c:452)", "Loop__on_idle (loop.c:19387)"), "uvloop"),
    ],
)
def test_a_sample_is_put_down_to_the_innermost_frame_that_says_whose_it_is(frames, place):
    assert profiling.place(frames) == place


def test_a_thread_that_waits_is_no_sample():
    waiting = "run (apiproxy/executor.py:45);PyThread_acquire_lock_timed (libpython3.11.so.1.0);0x7f (libc.so.6) 436"
    assert [sample.count for sample in profiling.parsed(f"{waiting}\na (b.py:1) 2")] == [2]


def test_a_process_costs_what_it_and_its_children_use():
    command = [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as parent:
        while len(processes.tree(parent.pid)) < 2 or not Path(f"/proc/{parent.pid}/status").exists():
            pass
        assert processes.cost(parent.pid).rss_mb > 5
        parent.communicate(b"\n")


def test_what_answers_nobody_says_nothing_of_the_ledger(tmp_path):
    page = tmp_path / "RESULTS.md"
    exact = f"| {report.EXACT} | 7 | 7 | yes |"
    page.write_text(f"<!-- goals -->\n{report.HEAD}\n{exact}\n<!-- /goals -->\n")
    goal = Goal(text="memory", wanted="1", reached="2", met=False)
    merged = report.merged([Part(name="memory", markdown="", goals=(goal,))], page).splitlines()
    assert merged == [*report.HEAD.splitlines(), goal.line(), exact]


def test_it_begins_in_a_shell_that_knows_nothing_of_django():
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
