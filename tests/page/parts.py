"""What groups are said to have done to a round's loss, held against the loss that the learner found."""

import collections
from pathlib import Path

import pytest

from rlswarm_jax.page.folder import Folder
from rlswarm_jax.page.lineage import authors_of, lessons


def assert_parts_are_the_loss(directory: Path) -> None:
    """In every round whose records are all there, the parts of a node's groups add up to its loss."""
    folder, checked = Folder(directory), 0
    folder.refresh()
    for member in folder.members:
        parts, losses = collections.defaultdict[int, list](list), {}
        for author in ["", *(one for one in authors_of(folder) if one != member.author.hex())]:
            before = None
            while True:
                page = lessons(folder, member, author, before)
                for group in page["groups"]:
                    parts[group["learned"]].append(group.get("part"))
                    losses[group["learned"]] = group.get("loss")
                before = page["next"]
                if before is None:
                    break
        for round_, found in parts.items():
            if None not in found:
                assert sum(found) == pytest.approx(losses[round_], abs=1e-3), (member.name, round_)
                checked += 1
    assert checked, "no round taught anything"
