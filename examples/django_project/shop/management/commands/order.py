"""``python manage.py order tea 3``: saves an order, and adds the task that sets its price."""

from django.core.management.base import BaseCommand
from django.db import transaction

from shop.models import Order
from shop.tasks import count_orders, set_price


class Command(BaseCommand):
    def add_arguments(self, parser):
        parser.add_argument("article")
        parser.add_argument("amount", type=int)
        parser.add_argument("--rollback", action="store_true", help="fail before the commit")

    def handle(self, article, amount, rollback, **_):
        with transaction.atomic():
            order = Order.objects.create(article=article, amount=amount)
            price = set_price.enqueue(order.pk)
            if rollback:
                raise SystemExit("rolled back: no order, and no task")
        self.stdout.write(f"order {order.pk} costs {price.result(timeout=30)}")
        self.stdout.write(f"orders: {count_orders.enqueue().result(timeout=30)}")
