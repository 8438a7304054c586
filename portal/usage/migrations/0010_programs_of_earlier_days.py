"""Count the days of usage that an older version recorded, which noted no programs, among the days of programs.

A key's day that has any program is left as it is: those calls are counted.
"""

from django.db import migrations

COUNT = """
    INSERT INTO usage_usageclientday (day, client_class, requests, answers, key_id, tenant_id, user_id)
    SELECT day, '', SUM(requests), SUM(requests - aborted - interrupted - failed - refused),
        key_id, MIN(tenant_id), MIN(user_id)
    FROM usage_usageday
    WHERE NOT EXISTS (
        SELECT 1 FROM usage_usageclientday
        WHERE usage_usageclientday.key_id = usage_usageday.key_id AND usage_usageclientday.day = usage_usageday.day
    )
    GROUP BY key_id, day
"""


class Migration(migrations.Migration):
    dependencies = [("usage", "0009_names_of_records")]
    operations = [migrations.RunSQL(COUNT, migrations.RunSQL.noop)]
