"""The verbs of `hf-compress` as `optimum-cli compress VERB`.

Level: outside. The wheel puts `optimum_register.py` where optimum looks for commands of other packages.
"""

from __future__ import annotations

import argparse

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from hf_compress.cli import DESCRIPTION, add_verbs, call_verb


class CompressCommand(BaseOptimumCLICommand):
    """`optimum-cli compress`: options, output, errors and exit status are those of `hf-compress`."""

    COMMAND = CommandInfo(name="compress", help=DESCRIPTION)

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the verbs to the parser that optimum made for this command."""
        parser.description = DESCRIPTION
        add_verbs(parser)

    def run(self) -> None:
        """Do what was parsed; a status other than 0 leaves by SystemExit, since optimum returns none."""
        status = call_verb(self.args, self.parser.prog)
        if status:
            raise SystemExit(status)
