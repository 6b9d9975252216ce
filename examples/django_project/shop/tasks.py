"""The shop's tasks; a worker imports this module by itself."""

from decimal import Decimal

from redistq.contrib.django import task

PRICES = {"tea": Decimal("4.50"), "cup": Decimal("12.00")}


@task(retries=2)
def set_price(order_id: int) -> str:
    """Write what an order costs; returns it."""
    from shop.models import Order

    order = Order.objects.get(pk=order_id)  # committed, for the task was added on commit
    order.price = PRICES[order.article] * order.amount
    order.save(update_fields=["price"])
    return str(order.price)


@task
async def count_orders() -> int:
    """Count them, in the event loop."""
    from shop.models import Order

    return await Order.objects.acount()
