"""What optimum reads to learn of `optimum-cli compress`.

The wheel puts this file into the namespace `optimum.commands.register`, which must hold no `__init__.py`.
"""

from hf_compress.cli_optimum import CompressCommand

REGISTER_COMMANDS = [CompressCommand]
