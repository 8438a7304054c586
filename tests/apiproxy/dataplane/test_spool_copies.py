"""Copies of a spool hold whole events only, and are put back without losing what is there."""

from apiproxy.dataplane.ledger import Spool, UsageDrain
from apiproxy.dataplane.spool_copies import add_to_spool, copy_spool
from tests.apiproxy.usage_events import usage


def drained(directory) -> list[str]:
    """Return the calls that the next gateway records."""
    rows = []
    UsageDrain(directory, rows.extend).run()
    return sorted(row.request_id for row in rows)


def test_a_spool_that_is_written_meanwhile_is_copied_up_to_its_last_whole_event(tmp_path):
    spool = Spool(tmp_path / "living")
    for name in ("a", "b"):
        spool.close_call(usage(name))
    [(name, content)] = copy_spool(tmp_path / "living")
    assert content.count(b"\n") == 2
    for torn in (
        content + content[:40],
        content + content[:40] + b"\0" * 20 + b"\n",
    ):  # being copied to memory just now
        path = tmp_path / "torn" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(torn + b"\0" * 1000)
        assert list(copy_spool(path.parent)) == [(name, content)]


def test_a_copy_is_moved_by_the_next_gateway(tmp_path):
    spool = Spool(tmp_path / "old")
    spool.close_call(usage("ended"))
    spool.open_call(usage("open"))
    for name, content in copy_spool(tmp_path / "old"):
        add_to_spool(tmp_path / "new", name, content)
    assert drained(tmp_path / "new") == ["ended", "open"]
    assert list((tmp_path / "new").glob("*.jsonl")) == []


def test_what_was_added_to_a_segment_since_its_copy_stays(tmp_path):
    spool = Spool(tmp_path)
    spool.close_call(usage("before"))
    copied = list(copy_spool(tmp_path))
    spool.close_call(usage("after"))
    spool.close()
    for name, content in copied:
        add_to_spool(tmp_path, name, content)
    assert drained(tmp_path) == ["after", "before"]


def test_what_was_set_aside_then_and_now_is_kept_once(tmp_path):
    refused = tmp_path / "refused.txt"
    refused.write_bytes(b"both\nnow\n")
    add_to_spool(tmp_path, "refused.txt", b"both\nthen\n")
    assert refused.read_bytes() == b"both\nnow\nthen\n"
