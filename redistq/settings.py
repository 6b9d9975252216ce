"""Where the server is, under the name that programs import it by."""

from .connection.address import Address as Address
from .connection.address import resolve as resolve
