"""Signals about use cases, for packages above this one."""

from django.dispatch import Signal

# A person tried a published case that is not their own. Arguments: `user`; not which case.
use_case_tried = Signal()
