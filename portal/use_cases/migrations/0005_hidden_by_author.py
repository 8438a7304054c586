from django.db import migrations, models


def keep_what_authors_may(apps, schema_editor):
    """Let authors show again what is hidden already, as they may: it is not known who has hidden it."""
    cases = apps.get_model("use_cases", "UseCase").objects.using(schema_editor.connection.alias)
    cases.filter(current=None).exclude(retired_at=None).update(hidden_by_author=True)


class Migration(migrations.Migration):

    dependencies = [
        ('use_cases', '0004_proposals_below_drafts'),
    ]

    operations = [
        migrations.AddField(
            model_name='usecase',
            name='hidden_by_author',
            field=models.BooleanField(default=False, help_text='Who may then show it again.'),
        ),
        migrations.RunPython(keep_what_authors_may, migrations.RunPython.noop),
    ]
