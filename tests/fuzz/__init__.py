"""Everything that callers, engines and files can say, at random, to a Madoguchi that runs: see `machine`."""
