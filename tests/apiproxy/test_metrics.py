import re

from apiproxy.metrics import Metrics

LINE = re.compile(r"# (HELP|TYPE) \w+ .+|\w+(\{(\w+=\"[^\"\\]*\",?)+\})? -?[0-9.e+]+")


def lines(metrics: Metrics, *gauges) -> list[str]:
    return metrics.text(gauges).decode().splitlines()


def test_every_line_is_of_the_exposition_format():
    metrics = Metrics()
    metrics.request("/v1/chat/completions", "acme/m:1", "finished")
    metrics.tokens("m", 3, 4)
    metrics.times("m", 0.07, 3.0)
    metrics.refusal("invalid_api_key")
    found = lines(metrics, ("g", "A gauge.", (), 1.5), ("h", "Others.", (("model", "m"),), 2))
    assert [line for line in found if not LINE.fullmatch(line)] == []
    assert 'madoguchi_requests_total{endpoint="/v1/chat/completions",model="acme/m:1",ending="finished"} 1' in found
    assert 'h{model="m"} 2' in found


def test_buckets_count_everything_below_them():
    metrics = Metrics()
    for seconds in (0.05, 0.06, 7, 10_000):
        metrics.times("m", None, seconds)
    found = lines(metrics)
    name = 'madoguchi_request_seconds_bucket{model="m",le='
    assert f'{name}"0.05"}} 1' in found
    assert f'{name}"0.1"}} 2' in found
    assert f'{name}"10.0"}} 3' in found
    assert f'{name}"+Inf"}} 4' in found
    assert 'madoguchi_request_seconds_count{model="m"} 4' in found
    assert not any("first_byte_seconds_bucket" in line for line in found)
