"""Orders."""

from django.db import models


class Order(models.Model):
    """Something that was ordered, and what a task made of it."""

    article = models.CharField(max_length=100)
    amount = models.IntegerField()
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
