from django.db import migrations
from django.db.models import Exists, OuterRef, Q


def restore_proposals(apps, schema_editor):
    """Let proposals wait for a decision again that nothing but a draft has replaced, as earlier releases did."""
    versions = apps.get_model("use_cases", "UseCaseVersion").objects.using(schema_editor.connection.alias)
    newer = versions.filter(~Q(state="draft"), use_case=OuterRef("use_case"), number__gt=OuterRef("number"))
    undecided = versions.filter(~Exists(newer), state="replaced", decided_at=None, starter_sum="")
    versions.filter(pk__in=list(undecided.values_list("pk", flat=True))).update(state="proposed")


class Migration(migrations.Migration):

    dependencies = [
        ('use_cases', '0003_names_of_one_line'),
    ]

    operations = [migrations.RunPython(restore_proposals, migrations.RunPython.noop)]
