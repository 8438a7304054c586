"""Versions side by side on a host: installed from bundles, switched by one link, gone back from, removed on request.

Runs with the distribution's Python before there is anything else, so standard library only, from 3.11 on.
"""
