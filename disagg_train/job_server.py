"""What the commands on a cluster's job server have in common."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from disagg_train.submission.state import JobServer


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the server is."""
    parser.add_argument(
        "--address",
        metavar="URL",
        help="of the cluster's dashboard, as http://HEAD:8265; default: RAY_API_SERVER_ADDRESS",
    )


def connect(address: str | None) -> "JobServer":
    """Return the server at an address; None takes that of the environment.

    Raises:
        ConfigError: there is no address.
        SubmissionError: nothing answers there, or it refuses the token.
    """
    from actors.jobs import RayJobs

    return RayJobs(address)
