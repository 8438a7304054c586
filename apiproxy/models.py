"""The number that tells gateways that their catalogue is old."""

from django.db import models


class CatalogueRevision(models.Model):
    """One row. Receivers in `apiproxy.apps` add one in the transaction of whoever changed what a catalogue holds."""

    number = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.number)
