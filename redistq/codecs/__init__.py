"""Codecs: payloads, results and errors of named tasks compressed, signed and encrypted."""

from .codec import ENV_CODEC as ENV_CODEC
from .codec import Codec as Codec
from .keys import Keys as Keys
from .sealing import Seal as Seal
from .stages import Compress as Compress
from .stages import Encrypt as Encrypt
from .stages import Sign as Sign
