"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []  # noqa: RUF012 - as Django writes them
    operations = [  # noqa: RUF012
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("article", models.CharField(max_length=100)),
                ("amount", models.IntegerField()),
                ("price", models.DecimalField(decimal_places=2, max_digits=8, null=True)),
            ],
        ),
    ]
