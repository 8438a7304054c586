"""Bytes as they come: in pieces of any size."""

import itertools


def cut_pieces(data: bytes, places: list[int]) -> list[bytes]:
    """Cut data at these places, counted round and round."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]
