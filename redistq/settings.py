"""Where the server is, and where large values go, under the name that programs import them by."""

from .connection.address import Address as Address
from .connection.address import resolve as resolve
from .functions.spill import Spill as Spill
